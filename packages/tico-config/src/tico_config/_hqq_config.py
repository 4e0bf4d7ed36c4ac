"""The config of HQQ."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._grid_format import GridFormat
from tico_config._legal_weights import weight_choices
from tico_config._module_config import ModuleConfig
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config.validation import as_float, check_integer, check_number, check_optional_integer


@register_config
@attrs.frozen(kw_only=True)
class HQQConfig(ModuleConfig):
    """Weights on the grids that come nearest to them in an Lp norm, found without data.

    Half-quadratic quantization, Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog. No forward pass is
    needed before `convert`. Every field except `show_progress` can be set per module by `overrides`.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input columns that share a scale; None shares one per output row.
        ragged_groups: let the last group of a row be a shorter one where `group_size` is no divisor of the
            columns; otherwise such a layer is refused.
        symmetric: signed codes with zero point 0, of which only the scale is found, instead of unsigned codes
            with a zero point.
        lp_norm: the p of the Lp norm of the rounding error, above 0 and up to 1. The smaller it is, the less
            count the few weights that are far from every code.
        steps: how many times the grids that span all weights of a group are improved; 0 rounds to nearest.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> HQQConfig(group_size=64, overrides={"*.v_proj": {"bits": 8}}).resolve("layers.0.v_proj").spec.bits
    8
    """

    name: ClassVar[str] = "hqq"
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides", "show_progress"})

    bits: int = 4
    group_size: int | None = None
    ragged_groups: bool = False
    symmetric: bool = False
    lp_norm: float = attrs.field(default=0.7, converter=as_float)
    steps: int = 20
    show_progress: bool = True

    def field_problems(self) -> Sequence[Problem | None]:
        """Return which numbers are out of range."""
        return [
            check_integer("bits", self.bits, 2, 8),
            check_optional_integer("group_size", self.group_size, 1),
            check_number("lp_norm", self.lp_norm, 0.0, 1.0, open_low=True),
            check_integer("steps", self.steps, 0, 1000),
        ]

    def weight_format(self) -> GridFormat:
        """Return the format that the weights of a layer get."""
        return GridFormat.of_weight(bits=self.bits, group_size=self.group_size, symmetric=self.symmetric)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        return weight_choices(target, whole=False)
