"""The config of WrapQ's post-training quantization."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar, Literal

import attrs

from tico_config._deployment_profile import DeploymentProfile
from tico_config._legal_specs import layer_choices
from tico_config._module_config import OnUncalibrated
from tico_config._registry import register_config
from tico_config._spec_config import SpecConfig


@register_config
@attrs.frozen(kw_only=True)
class PTQConfig(SpecConfig):
    """Weights and activations rounded to nearest, on grids that calibration determines.

    The spec of a point is the most specific of `overrides` that matches, or else `weight` or `activation`. A
    granularity that is left open is the wrapper's choice. `resolve` says which spec holds, and why.

    Attributes:
        activation: spec of every activation point; `no_quant()` quantizes weights only.
        weight: spec of every weight; per output channel unless it says otherwise.
        overrides: paths, globs or ``re:`` patterns, each with a `QuantSpec` or some of its fields.
        scope: ``"all"`` for every module with a wrapper. ``"linear"`` for linear layers alone, as servers of
            language models take them: their weights and inputs. Their outputs stay float unless an override
            names that very point, and the head of a language model unless an override has its exact path.
        steps: ``"auto"`` gives every functional step in the forward of a module without a wrapper a point of
            its own, such as ``layers.0.self_attn.matmul_0``. ``"declared"`` leaves such steps float.
        strict_wrap: whether a module without a wrapper is an error; if not, it stays float and is reported.
        on_uncalibrated: ``"skip"`` to leave activations that no calibration data reach in float, and say so
            in the report; ``"error"`` refuses to convert then.
        variant: name of the alternative wrapper to take, for classes that have one of that name.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> str(PTQConfig().resolve("layers.0.q_proj.act_in").spec)
    'uint8 asymmetric'
    """

    name: ClassVar[str] = "ptq"

    scope: Literal["all", "linear"] = "all"
    steps: Literal["auto", "declared"] = "auto"
    strict_wrap: bool = True
    on_uncalibrated: OnUncalibrated = "error"
    variant: str = "default"

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        scope = "all" if target.points else "linear"
        for weight, activation in layer_choices(target):
            yield {"weight": weight, "activation": activation, "scope": scope}
