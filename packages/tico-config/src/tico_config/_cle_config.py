"""The config of cross-layer equalization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._problem import Problem
from tico_config._registry import register_config
from tico_config._smoothing_config import SmoothingConfig
from tico_config.validation import check_integer


@register_config
@attrs.frozen(kw_only=True)
class CLEConfig(SmoothingConfig):
    """Neighbouring layers scaled to equal ranges in each channel between them; the model stays float.

    Cross-layer equalization, Nagel et al. 2019, arXiv 1906.04721, section 4.1. It works on pairs of linear
    layers or convolutions, with or without groups. Between the two there may only be what passes a positive
    scale on, such as a ReLU. A batch norm behind the first layer counts as a part of it, as if it were
    folded.

    One pass or an example is needed to find the pairs; the values do not matter. It helps most where a whole
    weight has one scale. High biases are not absorbed.

    Attributes:
        sweeps: the most rounds over all pairs; they end earlier if no scale changes any more.
        mappings: patterns for the modules that take scales, each with patterns for the layers that read them;
            without any, pairs are found by running the model.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> from tico_config import no_quant
    >>> CLEConfig(overrides={"features.0": no_quant()}).reason_to_leave("features.0")
    "left out by the override 'features.0'"
    """

    name: ClassVar[str] = "cle"
    scales_only: ClassVar[bool] = True
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides", "mappings", "sweeps"})

    sweeps: int = 100

    def field_problems(self) -> Sequence[Problem | None]:
        """Return whether `sweeps` is out of range, and what is wrong with `mappings`."""
        return [check_integer("sweeps", self.sweeps, 1, 10_000), *super().field_problems()]

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`: folded scales have a place anywhere."""
        return ({},)
