"""The config of GPTQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal, TypeAlias

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import DType
from tico_config._float_format import FloatFormat, NumberFormat
from tico_config._float_weights import as_float_format, dtype_problems
from tico_config._grid import PerChannel, PerGroup, PerTensor, SuperBlock
from tico_config._grid_format import GridFormat
from tico_config._legal_weights import weight_choices
from tico_config._module_config import ModuleConfig, OnUncalibrated
from tico_config._observer_specs import HessianMSESpec, MinMaxSpec, MSESpec, PercentileSpec
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config.validation import as_float, check_folder, check_integer, check_number, check_optional_integer

GPTQObserver: TypeAlias = MinMaxSpec | PercentileSpec | MSESpec | HessianMSESpec

TokenWeights: TypeAlias = Literal["auto", "uniform"] | tuple[float, ...]


def _as_weights(value: object) -> object:
    return tuple(as_float(item) for item in value) if isinstance(value, list | tuple) else value


@register_config
@attrs.frozen(kw_only=True)
class GPTQConfig(ModuleConfig):
    """Weights rounded column by column; later columns are adjusted to compensate for the error of each.

    Frantar et al. 2022, arXiv 2210.17323. Every field up to `min_expert_tokens` can be set per module
    by `overrides`, for example ``{"*.down_proj": {"bits": 8}}``.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input columns that share a scale; None shares one per output row.
        per_tensor: one scale for the whole weight; not with a `group_size`.
        ragged_groups: let the last group of a row be a shorter one where `group_size` is no divisor of the
            columns; otherwise such a layer is refused.
        super_block: quantize the scales of groups themselves, as llama.cpp's K-quants do: integers that share
            a float over several groups. Symmetric codes have such scales; unsigned codes also have such
            offsets, in the place of zero points. Both are rounded before any code is chosen. None makes each
            scale a float32 of its own.
        symmetric: signed codes with zero point 0 instead of unsigned codes with a zero point.
        dtype: a format of floating-point elements, such as `MXFP4()`, in the place of integers of `bits`. It
            decides `bits` and `symmetric`, and a format of blocks decides `group_size` too: leave these at
            their defaults. None stands for integers.
        observer: how a grid follows from the weights that share it. `MinMaxSpec` spans them all. `MSESpec`
            and `HessianMSESpec` search the best share of that range for each row. `PercentileSpec` cuts off
            both ends. None stands for ``HessianMSESpec(steps=20)``, except where `grid_observer` says
            otherwise.
        row_gain: multiply the scales of each row by one number, a multiple of 1/256, such that the row's
            outputs on the calibration data, projected onto those of the float row, are equal to these.
            Rounding, and grids that cut off large weights, make outputs a little smaller, in every layer in
            the same direction. It has no effect where scales have grids of their own (`super_block`, MX
            formats, NVFP4), nor in layers that are rounded to nearest.
        static_groups: find the grids of all groups first, from the original weights. The paper instead finds
            the grid of a group when its turn comes, from weights that earlier columns have adjusted. With
            `act_order`, static groups stay runs of neighbouring columns. Without a `group_size` it has no
            effect.
        act_order: handle the columns with the largest activations first. The paper takes them in their own
            order.
        damping: share of the Hessian's diagonal that is added to it, above 0 and up to 1.
        damping_reference: what the share is of: the ``"mean"`` of the diagonal or its ``"median"``, which a
            few very large inputs do not raise.
        min_expert_tokens: round an expert to nearest if it reads fewer tokens; 0 requires data for every
            expert. An expert is a module of a list, or a weight in a parameter that holds one for each.
        token_weights: how much a token counts in the Hessian. ``"auto"`` weighs it by how far an error in the
            layer's output for this token moves the output of the block. A first token, which all others
            may attend to, then outweighs hundreds of others. ``"uniform"`` counts all alike, as the paper
            does. Numbers are the weights of the first tokens of every sequence; later ones have weight 1.
        true_sequential: quantize the layers of a block one after the other, in the order in which they read,
            so that each learns from inputs that the quantized layers before it give. It takes one more pass
            of the block for each layer.
        asymmetric: how much of the difference between a layer's inputs in the float model and in the
            quantized model to compensate for, from 0 to 1 (GPTAQ, Li et al. 2025, arXiv 2504.02692, whose
            code takes 0.25). It takes one more pass of each float block. Not with `true_sequential`.
        calibrate_all_experts: let the experts that share a parameter learn from all tokens, not only from
            those that are routed to them. A token counts for an expert that it is not routed to as much as
            for the mean of those that it is. The outputs of the model do not change. Experts whose rows come
            sorted already, as in Llama 4, learn from their own tokens all the same.
        gram_memory: the most bytes that the Gram matrices of a block's layers may take at a time, or None for
            no limit. A block that needs more, such as one with many experts, is run several times, each time
            for other layers; the bits are the same. A layer of c inputs takes about 4c² bytes, four times as
            much if `asymmetric` is not 0, and 8 KiB for each of its inputs. A layer that needs more by itself
            is refused.
        forward_dtype: ``"bfloat16"`` to run the passes of `convert` under torch's autocast in it.
        activation_dtype: ``"bfloat16"`` to keep the activations between blocks in it.
        offload: ``"disk"`` to keep the activations between blocks in temporary files without a name, in the
            folder of ``TMPDIR``.
        checkpoint_dir: a folder to keep each finished block in, so that an interrupted `convert` can go on.
            Each combination of config, data and model has a folder of its own in it.
        stop_after_capture: end a forward pass during calibration as soon as nothing more can be learned from
            it, as the first such pass has shown. It then returns None.
        on_uncalibrated: ``"skip"`` to leave layers that no calibration data reach in float, and say so in the
            report; ``"error"`` refuses to convert then.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> GPTQConfig(overrides={"*.down_proj": {"bits": 8}}).resolve("layers.0.mlp.down_proj").spec.bits
    8
    """

    name: ClassVar[str] = "gptq"
    fixed_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "overrides",
            "true_sequential",
            "asymmetric",
            "calibrate_all_experts",
            "gram_memory",
            "forward_dtype",
            "activation_dtype",
            "offload",
            "checkpoint_dir",
            "stop_after_capture",
            "on_uncalibrated",
            "show_progress",
        }
    )

    bits: int = 4
    group_size: int | None = None
    per_tensor: bool = False
    ragged_groups: bool = False
    super_block: SuperBlock | None = None
    symmetric: bool = False
    dtype: FloatFormat | None = attrs.field(default=None, converter=as_float_format)
    observer: GPTQObserver | None = None
    row_gain: bool = True
    static_groups: bool = True
    act_order: bool = True
    damping: float = attrs.field(default=0.01, converter=as_float)
    damping_reference: Literal["mean", "median"] = "mean"
    min_expert_tokens: int = 32
    token_weights: TokenWeights = attrs.field(default="auto", converter=_as_weights)
    true_sequential: bool = False
    asymmetric: float = attrs.field(default=0.0, converter=as_float)
    calibrate_all_experts: bool = False
    gram_memory: int | None = 16 * 2**30
    forward_dtype: Literal["bfloat16"] | None = None
    activation_dtype: Literal["bfloat16"] | None = None
    offload: Literal["disk"] | None = None
    checkpoint_dir: str | None = None
    stop_after_capture: bool = False
    on_uncalibrated: OnUncalibrated = "error"
    show_progress: bool = True

    def field_problems(self) -> Sequence[Problem | None]:
        """Return which numbers are out of range, and which fields contradict each other."""
        return [
            check_integer("bits", self.bits, 2, 8),
            check_optional_integer("group_size", self.group_size, 1),
            self._two_units_problem(),
            *dtype_problems(
                self, self.dtype, ("bits", "symmetric", "super_block"), ("group_size", "per_tensor")
            ),
            self._super_block_problem(),
            check_number("damping", self.damping, 0.0, 1.0, open_low=True),
            check_integer("min_expert_tokens", self.min_expert_tokens, 0),
            self._weights_problem(),
            check_number("asymmetric", self.asymmetric, 0.0, 1.0),
            check_optional_integer("gram_memory", self.gram_memory, 1),
            self._two_orders_problem(),
            check_folder("checkpoint_dir", self.checkpoint_dir),
        ]

    @property
    def grid_observer(self) -> GPTQObserver:
        """The `observer` that is used; for None a search by the Hessian.

        With four levels, the values that a search cuts off make outputs so much smaller that it needs
        `row_gain`; where there is none, 2 bits have the whole range.

        >>> GPTQConfig().grid_observer, GPTQConfig(bits=2, row_gain=False).grid_observer
        (HessianMSESpec(steps=20), MinMaxSpec())
        """
        if self.observer is not None:
            return self.observer
        loses = self.bits == 2 and not (self.row_gain and self.super_block is None)
        return MinMaxSpec() if loses else HessianMSESpec(steps=20)

    @property
    def number_format(self) -> NumberFormat:
        """The format of a code: `dtype`, or integers of `bits`.

        >>> str(GPTQConfig(bits=3).number_format)
        'uint3'
        """
        return DType(self.bits, signed=self.symmetric) if self.dtype is None else self.dtype

    @property
    def shared_columns(self) -> int | None:
        """The number of columns that share a scale: the blocks of `dtype`, or `group_size`.

        >>> from tico_config import NVFP4
        >>> GPTQConfig(dtype=NVFP4()).shared_columns
        16
        """
        return (self.dtype and self.dtype.block_size) or self.group_size

    def weight_format(self) -> GridFormat:
        """Return the format that the weights of a layer get."""
        size = self.shared_columns
        grouped = size is not None
        alone = PerTensor() if self.per_tensor else PerChannel(0)
        return GridFormat(
            dtype=self.number_format,
            granularity=alone if size is None else PerGroup(size=size),
            symmetric=self.number_format.signed,
            even=not (grouped and self.act_order and not self.static_groups),
            super_block=self.super_block,
        )

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        return weight_choices(target, super_blocks=True)

    def _two_units_problem(self) -> Problem | None:
        if self.per_tensor is not True or self.group_size is None:
            return None
        remedy = "leave one of the two out, an override can set group_size to None"
        expected = "None with per_tensor"
        return Problem(field="group_size", value=self.group_size, expected=expected, remedy=remedy)

    def _super_block_problem(self) -> Problem | None:
        block, size = self.super_block, self.group_size
        if not isinstance(block, SuperBlock):
            return None
        if type(size) is not int or size < 1 or block.columns % size:
            expected = f"a divisor of the {block.columns} columns of a super-block"
            return Problem(field="group_size", value=size, expected=expected)
        if self.symmetric is False and not block.has_offsets:
            remedy = "set symmetric=True, give the super-block offset_bits, or leave it out"
            expected = "True with a super_block without offset_bits"
            return Problem(field="symmetric", value=False, expected=expected, remedy=remedy)
        if self.symmetric is True and block.has_offsets:
            remedy = "set symmetric=False, or leave offset_bits out"
            expected = "False with a super_block with offset_bits"
            return Problem(field="symmetric", value=True, expected=expected, remedy=remedy)
        return None

    def _two_orders_problem(self) -> Problem | None:
        if self.true_sequential is not True or not self.asymmetric:
            return None
        expected = "0 with true_sequential"
        return Problem(field="asymmetric", value=self.asymmetric, expected=expected)

    def _weights_problem(self) -> Problem | None:
        value: object = self.token_weights
        if value in ("auto", "uniform"):
            return None
        if isinstance(value, tuple) and value and not any(map(_weight_problem, value)):
            return None
        expected = "'auto', 'uniform', or numbers from 0 to 1e+06, one for each of the first tokens"
        return Problem(field="token_weights", value=value, expected=expected)


def _weight_problem(value: object) -> Problem | None:
    return check_number("token_weights", value, 0.0, 1e6)
