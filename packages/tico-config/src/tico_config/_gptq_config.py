"""The config of GPTQ."""

from __future__ import annotations

from typing import ClassVar

import attrs

from tico_config._errors import Problem
from tico_config._module_config import ModuleConfig
from tico_config._validation import as_float, boolean, integer, number, optional_integer


@attrs.frozen(kw_only=True)
class GPTQConfig(ModuleConfig):
    """Weights rounded one column at a time, each error made up for by the columns that follow.

    Frantar et al. 2022, arXiv 2210.17323. Every field except `show_progress` can be set per module by
    `overrides`, for example ``{"*.down_proj": {"bits": 8}}``.

    Attributes:
        bits: width of a code, 2 to 8.
        group_size: input columns that share a scale; None shares one per output row.
        symmetric: signed codes with zero point 0 instead of unsigned codes with a zero point.
        act_order: handle the columns with the largest activations first.
        damping: share of the Hessian's mean diagonal that is added to its diagonal, above 0 and up to 1.
        min_expert_tokens: an expert (a module of a list of which some read less than others) that reads fewer
            tokens is rounded to nearest; 0 requires data for every one.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> GPTQConfig(overrides={"*.down_proj": {"bits": 8}}).resolve("layers.0.mlp.down_proj").spec.bits
    8
    """

    name: ClassVar[str] = "gptq"
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides", "show_progress"})

    bits: int = 4
    group_size: int | None = None
    symmetric: bool = False
    act_order: bool = False
    damping: float = attrs.field(default=0.01, converter=as_float)
    min_expert_tokens: int = 32
    show_progress: bool = True

    def _field_problems(self) -> list[Problem | None]:
        return [
            integer("bits", self.bits, 2, 8),
            optional_integer("group_size", self.group_size, 1),
            boolean("symmetric", self.symmetric),
            boolean("act_order", self.act_order),
            number("damping", self.damping, 0.0, 1.0, open_low=True),
            integer("min_expert_tokens", self.min_expert_tokens, 0),
            boolean("show_progress", self.show_progress),
        ]
