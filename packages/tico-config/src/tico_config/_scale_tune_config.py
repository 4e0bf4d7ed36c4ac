"""The config of scales that are tuned against the output of the float model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar

import attrs

from tico_config._base_config import BaseConfig
from tico_config._deployment_profile import DeploymentProfile
from tico_config._gptq_config import GPTQConfig
from tico_config._module_config import ModuleConfig
from tico_config._problem import Found, Problem
from tico_config._registry import register_config
from tico_config.validation import as_float, check_integer, check_number


@register_config
@attrs.frozen(kw_only=True)
class ScaleTuneConfig(ModuleConfig):
    """Weights quantized by another algorithm, whose scales are then tuned towards the float model.

    Adam moves the scales of all layers together so as to lower the mean of KL(float ‖ quantized) over the
    calibration data, the divergence of the model's output distributions (distillation, Hinton et al. 2015,
    arXiv 1503.02531, section 2). Codes and zero points stay. The float model is the one that `prepare` is
    given; a converted model is refused, because it does not hold its float weights any more.

    An override with `no_quant()` leaves the scales of a layer as the base has left them. How its weights are
    quantized is up to the overrides of `base`.

    Attributes:
        base: the config of the algorithm that quantizes the weights. Its own `target` may be left out.
        norms: tune the weights of norms, too, which stay floats.
        steps: how many steps are made, each for `samples` samples.
        samples: how many samples a step learns from; the gradients of one at a time are in memory.
        learning_rate: about the share of itself by which a scale may change in the first step. It falls to 0
            by half a cosine.
        held_out: about the share of the samples that no step learns from. The checked step with the least
            loss on these is kept; if none lowers it, all scales stay.
        check_every: number of steps between two checks of that loss.
        seed: decides the order of the samples, and which are held out.
        show_progress: show a progress bar during `convert` where the extra `progress` is installed.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> ScaleTuneConfig(base=GPTQConfig(bits=3, group_size=64)).base.bits
    3
    """

    name: ClassVar[str] = "scale_tune"
    fixed_fields: ClassVar[frozenset[str]] = frozenset(
        {
            "overrides",
            "base",
            "norms",
            "steps",
            "samples",
            "learning_rate",
            "held_out",
            "check_every",
            "seed",
            "show_progress",
        }
    )

    base: BaseConfig = attrs.field(factory=GPTQConfig)
    norms: bool = False
    steps: int = 32
    samples: int = 2
    learning_rate: float = attrs.field(default=3e-3, converter=as_float)
    held_out: float = attrs.field(default=0.25, converter=as_float)
    check_every: int = 8
    seed: int = 0
    show_progress: bool = True

    def field_problems(self) -> Sequence[Problem | None]:
        """Return which numbers are out of range, and what is wrong with `base`."""
        return [
            self._base_problem(),
            self._target_problem(),
            check_integer("steps", self.steps, 1, 100_000),
            check_integer("samples", self.samples, 1),
            check_number("learning_rate", self.learning_rate, 0.0, 1.0, open_low=True),
            check_number("held_out", self.held_out, 0.0, 1.0, open_low=True),
            check_integer("check_every", self.check_every, 1),
            check_integer("seed", self.seed, 0),
        ]

    def aimed_base(self) -> BaseConfig:
        """Return `base` with the `target` of this config, where it has none of its own.

        >>> from tico_config import profiles
        >>> ScaleTuneConfig(target=profiles.VLLM).aimed_base().target == profiles.VLLM
        True
        """
        return attrs.evolve(self.base, target=self.base.target or self.target)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first."""
        return ({"base": GPTQConfig(**fields)} for fields in GPTQConfig.choices_for(target))  # type: ignore[arg-type]

    def _base_problem(self) -> Problem | None:
        if not isinstance(self.base, ScaleTuneConfig):
            return None
        found, expected = Found("a ScaleTuneConfig"), "the config of an algorithm that makes codes"
        return Problem(field="base", value=found, expected=expected, remedy="raise steps instead")

    def _target_problem(self) -> Problem | None:
        own = self.base.target
        if own is None or self.target is None or own == self.target:
            return None
        expected = f"{own.name}, as base has it, or None"
        return Problem(field="target", value=Found(self.target.name), expected=expected)
