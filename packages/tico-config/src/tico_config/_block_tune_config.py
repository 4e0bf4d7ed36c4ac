"""The config of learned rounding."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import DType
from tico_config._float_format import FloatFormat, NumberFormat
from tico_config._float_weights import as_float_format, dtype_problems
from tico_config._gptq_config import GPTQObserver
from tico_config._grid import PerChannel, PerGroup
from tico_config._grid_format import GridFormat
from tico_config._legal_weights import weight_choices
from tico_config._module_config import ModuleConfig, OnUncalibrated
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config.validation import as_float, check_folder, check_integer, check_number, check_optional_integer


@register_config
@attrs.frozen(kw_only=True)
class BlockTuneConfig(ModuleConfig):
    """Weights whose rounding and scales are learned, so that each block gives what the float block gives.

    Gradients go straight through rounding, as in SignRound, Cheng et al. 2023, arXiv 2309.05516. A whole
    block is tuned at a time, as in BRECQ, Li et al. 2021, arXiv 2102.05426. A model without blocks is one.
    Every field up to `min_expert_tokens` can be set per module by `overrides`, for example
    ``{"*.down_proj": {"bits": 8}}``.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input columns that share a scale; None shares one per output row.
        ragged_groups: let the last group of a row be a shorter one where `group_size` is no divisor of the
            columns; otherwise such a layer is refused.
        symmetric: signed codes with zero point 0 instead of unsigned codes with a zero point.
        dtype: a format of floating-point elements, such as `MXFP4()`, in the place of integers of `bits`, as
            for `GPTQConfig`. Of these, steps move the scales of `FP8` alone: those of blocks have grids of
            their own, and stay.
        start: where tuning starts: from the codes of ``"gptq"``, which takes columns in the order of their
            activations and grids of the float weights, or from rounding to ``"nearest"``.
        observer: how a grid follows from the weights that share it, as for `GPTQConfig`.
        damping: share of the Hessian's diagonal that is added to it for GPTQ, above 0 and up to 1.
        min_expert_tokens: an expert that reads fewer tokens starts rounded to nearest; 0 requires data for
            every one.
        steps: how many steps each block makes; 0 leaves it at its start.
        samples: how many sequences a step learns from, one after the other.
        rate: how far the first step of Adam moves a weight, in steps of its grid. It changes a scale by a
            tenth of that, as a share of itself. Later steps become shorter, down to nearly nothing. A weight
            starts at most a quarter of a grid step from its code; the code changes once the weight is more
            than half a grid step away.
        held_out: share of the sequences that no step learns from. The result of the step with the smallest
            loss on these is kept; if no step lowers it, the block stays at its start.
        seed: decides which sequences are held out, and in which order the others come.
        offload: ``"disk"`` to keep what goes from block to block in temporary files without a name, in the
            folder of ``TMPDIR``.
        checkpoint_dir: a folder to keep each finished block in, as for `GPTQConfig`.
        on_uncalibrated: ``"skip"`` to leave layers that no calibration data reach in float, and say so in the
            report; ``"error"`` refuses to convert then.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> config = BlockTuneConfig(bits=3, group_size=64, overrides={"*.v_proj": {"bits": 8}})
    >>> config.resolve("layers.0.v_proj").spec.bits
    8
    """

    name: ClassVar[str] = "block_tune"
    fixed_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "overrides",
            "steps",
            "samples",
            "rate",
            "held_out",
            "seed",
            "offload",
            "checkpoint_dir",
            "on_uncalibrated",
            "show_progress",
        }
    )

    bits: int = 4
    group_size: int | None = None
    ragged_groups: bool = False
    symmetric: bool = False
    dtype: FloatFormat | None = attrs.field(default=None, converter=as_float_format)
    start: Literal["gptq", "nearest"] = "gptq"
    observer: GPTQObserver | None = None
    damping: float = attrs.field(default=0.01, converter=as_float)
    min_expert_tokens: int = 32
    steps: int = 32
    samples: int = 2
    rate: float = attrs.field(default=0.02, converter=as_float)
    held_out: float = attrs.field(default=0.125, converter=as_float)
    seed: int = 0
    offload: Literal["disk"] | None = None
    checkpoint_dir: str | None = None
    on_uncalibrated: OnUncalibrated = "error"
    show_progress: bool = True

    def field_problems(self) -> Sequence[Problem | None]:
        """Return which numbers are out of range."""
        return [
            check_integer("bits", self.bits, 2, 8),
            check_optional_integer("group_size", self.group_size, 1),
            *dtype_problems(self, self.dtype, ("bits", "symmetric"), ("group_size",)),
            check_number("damping", self.damping, 0.0, 1.0, open_low=True),
            check_integer("min_expert_tokens", self.min_expert_tokens, 0),
            check_integer("steps", self.steps, 0, 100_000),
            check_integer("samples", self.samples, 1),
            check_number("rate", self.rate, 0.0, 1.0, open_low=True),
            check_number("held_out", self.held_out, 0.0, 0.5, open_low=True),
            check_integer("seed", self.seed, 0, 2**63 - 1),
            check_folder("checkpoint_dir", self.checkpoint_dir),
        ]

    @property
    def number_format(self) -> NumberFormat:
        """The format of a code: `dtype`, or integers of `bits`.

        >>> str(BlockTuneConfig(bits=3).number_format)
        'uint3'
        """
        return DType(self.bits, signed=self.symmetric) if self.dtype is None else self.dtype

    @property
    def shared_columns(self) -> int | None:
        """The number of columns that share a scale: the blocks of `dtype`, or `group_size`.

        >>> from tico_config import NVFP4
        >>> BlockTuneConfig(dtype=NVFP4()).shared_columns
        16
        """
        return (self.dtype and self.dtype.block_size) or self.group_size

    def weight_format(self) -> GridFormat:
        """Return the format that the weights of a layer get."""
        size, dtype = self.shared_columns, self.number_format
        unit = PerChannel(0) if size is None else PerGroup(size=size)
        return GridFormat(dtype=dtype, granularity=unit, symmetric=dtype.signed)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        return weight_choices(target, whole=False)
