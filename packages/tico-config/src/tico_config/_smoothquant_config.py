"""The config of SmoothQuant."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, Literal

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._module_config import OnUncalibrated
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config._smoothing_config import SmoothingConfig
from tico_config.validation import as_float, check_number


@register_config
@attrs.frozen(kw_only=True)
class SmoothQuantConfig(SmoothingConfig):
    """Part of the activations' range moved into the weights before either is quantized.

    Xiao et al. 2022, arXiv 2211.10438, equation 4. It works on pairs; the path of an override may be that of
    the module that takes the scales or of a layer that reads it.

    Attributes:
        alpha: share of the difficulty that moves to the weights, 0 to 1, or ``"auto"`` for a search per pair.
        mappings: patterns for the modules that take scales, each with patterns for the layers that read them;
            without any, pairs are found by running the model.
        insert_mul: whether a layer whose input nothing can scale gets a multiplication in front of it, which
            stays in the model.
        on_uncalibrated: ``"skip"`` to leave pairs alone of which no calibration data reach a layer that
            reads, and say so in the report; ``"error"`` refuses to convert then.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> SmoothQuantConfig(alpha="auto").alpha
    'auto'
    """

    name: ClassVar[str] = "smoothquant"
    scales_only: ClassVar[bool] = True

    fixed_fields: ClassVar[frozenset[str]] = frozenset(
        {"overrides", "mappings", "insert_mul", "on_uncalibrated"}
    )

    alpha: float | Literal["auto"] = attrs.field(default=0.5, converter=as_float)
    insert_mul: bool = False
    on_uncalibrated: OnUncalibrated = "error"

    def field_problems(self) -> Sequence[Problem | None]:
        """Return whether `alpha` is out of range, and what is wrong with `mappings`."""
        problem = None if self.alpha == "auto" else check_number("alpha", self.alpha, 0.0, 1.0)
        alpha = problem and attrs.evolve(problem, expected=f"{problem.expected}, or 'auto'")
        return [alpha, *super().field_problems()]

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`: folded scales have a place anywhere."""
        return ({"insert_mul": False},)
