"""The config of SmoothQuant."""

from __future__ import annotations

from typing import ClassVar, Literal

import attrs

from tico_config._errors import Problem
from tico_config._module_config import ModuleConfig
from tico_config._validation import as_float, number


@attrs.frozen(kw_only=True)
class SmoothQuantConfig(ModuleConfig):
    """Part of the activations' range moved into the weights before either is quantized.

    Xiao et al. 2022, arXiv 2211.10438, equation 4.

    Attributes:
        alpha: share of the difficulty that moves to the weights, 0 to 1, or ``"auto"`` for a search per pair.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> SmoothQuantConfig(alpha="auto").alpha
    'auto'
    """

    name: ClassVar[str] = "smoothquant"

    alpha: float | Literal["auto"] = attrs.field(default=0.5, converter=as_float)

    def _field_problems(self) -> list[Problem | None]:
        problem = None if self.alpha == "auto" else number("alpha", self.alpha, 0.0, 1.0)
        return [problem and attrs.evolve(problem, expected=f"{problem.expected}, or 'auto'")]
