"""The config of AWQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import DType
from tico_config._float_format import FloatFormat, NumberFormat
from tico_config._float_weights import as_float_format, dtype_problems
from tico_config._grid import PerChannel, PerGroup
from tico_config._grid_format import GridFormat
from tico_config._legal_weights import weight_choices
from tico_config._module_config import OnUncalibrated
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config._smoothing_config import SmoothingConfig
from tico_config.validation import check_integer, check_optional_integer


@register_config
@attrs.frozen(kw_only=True)
class AWQConfig(SmoothingConfig):
    """Weights scaled up where the activations are large, and rounded to nearest.

    Lin et al. 2023, arXiv 2306.00978. It works on pairs, as SmoothQuant does; layers in no pair are not
    scaled. Every field except `mappings`, `round_weights`, `on_uncalibrated` and `show_progress` can be set
    per module by `overrides`.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input columns that share a scale; None shares one per output row.
        ragged_groups: let the last group of a row be a shorter one where `group_size` is no divisor of the
            columns; otherwise such a layer is refused.
        symmetric: signed codes with zero point 0 instead of unsigned codes with a zero point.
        dtype: a format of floating-point elements, such as `MXFP4()`, in the place of integers of `bits`. It
            decides `bits` and `symmetric`, and a format of blocks decides `group_size` too: leave these at
            their defaults. None stands for integers.
        n_grid: how many exponents are tried for the scales of a pair, which are powers of the activations'
            magnitude: 0, ``1 / n_grid``, ``2 / n_grid`` and so on. 1 scales nothing.
        clip: whether to cut off the range of each group where that lowers the error of the layer's outputs.
            Clipping makes the outputs of every layer a little smaller. Together this can cost the model more
            than the layers gain.
        round_weights: False leaves float weights, scaled and perhaps clipped, for an algorithm that rounds
            them.
        mappings: patterns for the modules that take scales, each with patterns for the layers that read them;
            without any, pairs are found by running the model.
        on_uncalibrated: ``"skip"`` to leave layers that no calibration data reach in float, and say so in the
            report; ``"error"`` refuses to convert then.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> AWQConfig(overrides={"*.v_proj": {"clip": True}}).resolve("layers.0.v_proj").spec.clip
    True
    """

    name: ClassVar[str] = "awq"
    fixed_fields: ClassVar[frozenset[str]] = frozenset(
        {"overrides", "mappings", "round_weights", "on_uncalibrated", "show_progress"}
    )

    bits: int = 4
    group_size: int | None = 64
    ragged_groups: bool = False
    symmetric: bool = False
    dtype: FloatFormat | None = attrs.field(default=None, converter=as_float_format)
    n_grid: int = 20
    clip: bool = False
    round_weights: bool = True
    on_uncalibrated: OnUncalibrated = "error"
    show_progress: bool = True

    def field_problems(self) -> Sequence[Problem | None]:
        """Return which numbers are out of range, and what is wrong with `mappings`."""
        return [
            check_integer("bits", self.bits, 2, 8),
            check_optional_integer("group_size", self.group_size, 1),
            *dtype_problems(self, self.dtype, ("bits", "symmetric"), ("group_size",)),
            check_integer("n_grid", self.n_grid, 1, 1000),
            *super().field_problems(),
        ]

    @property
    def number_format(self) -> NumberFormat:
        """The format of a code: `dtype`, or integers of `bits`.

        >>> str(AWQConfig(bits=3).number_format)
        'uint3'
        """
        return DType(self.bits, signed=self.symmetric) if self.dtype is None else self.dtype

    @property
    def shared_columns(self) -> int | None:
        """The number of columns that share a scale: the blocks of `dtype`, or `group_size`.

        >>> from tico_config import NVFP4
        >>> AWQConfig(dtype=NVFP4()).shared_columns
        16
        """
        return (self.dtype and self.dtype.block_size) or self.group_size

    def weight_format(self) -> GridFormat | None:
        """Return the format that the weights of a layer get; None where another algorithm rounds them."""
        if not self.round_weights:
            return None
        size, dtype = self.shared_columns, self.number_format
        unit = PerChannel(0) if size is None else PerGroup(size=size)
        return GridFormat(dtype=dtype, granularity=unit, symmetric=dtype.signed)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        return weight_choices(target, whole=False)
