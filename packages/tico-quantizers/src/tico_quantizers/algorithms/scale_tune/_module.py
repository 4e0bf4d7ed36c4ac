"""How the tuning of scales meets a model: the base quantizes it, then the scales of all layers are moved."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, final

import attrs
from torch import nn

from tico_config import ConfigError, Found, Problem, ScaleTuneConfig, UnsupportedError
from tico_modules import Edit, LayerReport, PackedWeight, Progress, Report, named_modules, runs_of
from tico_quantizers.algorithms.scale_tune._calibration import ScaleTuneCalibration
from tico_quantizers.algorithms.scale_tune._divergence import Divergences
from tico_quantizers.algorithms.scale_tune._teacher import Teacher
from tico_quantizers.calibration import quiet_runs
from tico_quantizers.equivalence import ChannelScale, as_channel_scale
from tico_quantizers.layers import find_blocks, plan_layers
from tico_quantizers.protocol import AnyQuantizer, BaseQuantizer, Converted, Example, Planned
from tico_quantizers.tuning import (
    Descent,
    Factor,
    Schedule,
    Split,
    TreeState,
    descend,
    recomputed,
    scales_of,
)

_LOG: Final = logging.getLogger("tico_quantizers")
_NOTE: Final = "scales change only if steps make the loss of the samples held out less"


@final
class ScaleTuneQuantizer(BaseQuantizer[ScaleTuneConfig, ScaleTuneCalibration]):
    """Scales of what `base` quantizes, moved together towards what the float model says."""

    checks_target: ClassVar[bool] = True

    def __init__(self, config: ScaleTuneConfig, base: AnyQuantizer) -> None:
        super().__init__(config)
        self._base = base

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, ScaleTuneCalibration]:
        """Let the base start to watch, and note the calls of the model."""
        self._require_possible(model)
        norms = self._norms(model)
        root, base = self._base.start(model, example, edit)
        return root, ScaleTuneCalibration(base, norms)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what the base would make of `model`; tuning changes the values of scales alone."""
        self._require_possible(model)
        norms = self._norms(model)
        planned = self._base.planned(model, edit)
        factors, reasons = _tunable(planned.converted.root, norms, self.config)
        lines = _lines(planned.converted.report.layers, factors, {}, reasons, self.config)
        report = Report(layers=tuple(lines))
        converted = attrs.evolve(planned.converted, report=report)
        return attrs.evolve(planned, converted=converted, notes=(*planned.notes, _NOTE))

    def convert(self, model: nn.Module, calibration: ScaleTuneCalibration, edit: Edit) -> Converted:
        """Let the base put integers in the place of floats, and move their scales."""
        before = TreeState.of(model)
        root = calibration.base.convert(model, edit)
        factors, reasons = _tunable(root, calibration.norms, self.config)
        samples = calibration.samples()
        split = Split.of(len(samples), share=self.config.held_out, seed=self.config.seed)
        loss = Divergences(teacher=Teacher(before), model=root, samples=samples, factors=factors)
        found = self._tuned(loss, split, calibration)
        if found.step:
            for factor in factors:
                factor.put(edit)
        return _converted(root, factors, reasons, found, self.config)

    def _norms(self, model: nn.Module) -> tuple[ChannelScale, ...]:
        """Return the norms of `model`, if their weights are to be tuned."""
        found = (as_channel_scale(module) for _, module in named_modules(model) if self.config.norms)
        return tuple(norm for norm in found if norm is not None)

    def _require_possible(self, model: nn.Module) -> None:
        """Refuse a model, or a base, for which there is no float model to come near to.

        Raises:
            UnsupportedError: a weight of the model is quantized already, or the base makes a graph.
            ConfigError: an override names no layer.
        """
        kind = type(self.config.base).__name__
        if not self._base.works_in_place:
            found, expected = Found(kind), "the config of an algorithm that works on modules"
            raise UnsupportedError(Problem(field="base", value=found, expected=expected))
        done = next((path for path, each in named_modules(model) if isinstance(each, PackedWeight)), None)
        if done is not None:
            raise UnsupportedError(_without_teacher(done.removesuffix("packed").removesuffix("."), kind))
        plan_layers(model, attrs.evolve(self.config, target=None))

    def _tuned(self, loss: Divergences, split: Split, calibration: ScaleTuneCalibration) -> Descent:
        """Move the logarithms of the factors to where the loss of the samples held out is least."""
        config, values = self.config, [factor.logarithm for factor in loss.factors]
        schedule = Schedule(
            steps=config.steps,
            rate=config.learning_rate,
            samples=config.samples,
            checks=config.check_every,
            seed=config.seed,
        )
        layers = [factor.module for factor in loss.factors]
        blocks = [block for _, block in find_blocks(loss.model, layers)]
        shows = config.show_progress and calibration.ranks.number == 0
        with (
            Progress("SCALE TUNE", total=config.steps, show=shows, unit="step") as bar,
            quiet_runs(loss.model),
            recomputed(blocks),
        ):
            return descend(
                values,
                loss,
                split,
                schedule,
                within=loss.lending,
                after_step=lambda step, latest: _tell(bar, step, latest),
            )


def _tell(bar: Progress, step: int, loss: float) -> None:
    bar.step(f"loss {loss:.4g}")
    _LOG.info("scale_tune, step %d: loss of the samples held out %.4g", step, loss)


def _without_teacher(path: str, base: str) -> Problem:
    """Return what is wrong with a model whose weight at `path` is quantized already."""
    return Problem(
        module=path or None,
        field="model",
        value=Found("integers"),
        expected="the float model",
        sentence="its weight is quantized already, so the float model that its scales would be tuned"
        " against is gone",
        remedy=f"prepare the float model with ScaleTuneConfig(base={base}(…)), which quantizes it and then"
        " tunes the scales",
    )


def _tunable(
    root: nn.Module, norms: Sequence[ChannelScale], config: ScaleTuneConfig
) -> tuple[tuple[Factor, ...], Mapping[str, str]]:
    """Return what of `root` moves, scales and the weights of `norms`, and why other scales do not, by path.

    Raises:
        ConfigError: there are no scales; with the reasons.
    """
    scales, reasons = scales_of(root)
    found = [*scales, *_of_norms(root, norms)]
    left = {each.path: why for each in found if (why := config.reason_to_leave(each.path)) is not None}
    if all(scale.path in left for scale in scales):
        why = "; ".join(dict.fromkeys([*reasons.values(), *left.values()])) or "it leaves no integers"
        base = type(config.base).__name__
        expected = "the config of an algorithm that makes integer weights"
        sentence = f"{base} leaves no scales that can be tuned: {why}"
        raise ConfigError(Problem(field="base", value=Found(base), expected=expected, sentence=sentence))
    return tuple(each for each in found if each.path not in left), {**reasons, **left}


def _of_norms(root: nn.Module, norms: Sequence[ChannelScale]) -> Iterator[Factor]:
    """Yield the weights of those `norms` that the base has left in `root`."""
    offsets = {id(norm.module): norm.offset for norm in norms}
    for path, module in named_modules(root):
        if id(module) in offsets:
            yield Factor.of(path, module, "weight", offset=offsets[id(module)])


def _converted(
    root: nn.Module,
    factors: Sequence[Factor],
    reasons: Mapping[str, str],
    found: Descent,
    config: ScaleTuneConfig,
) -> Converted:
    """Return the result, with a line for each that the base has one for."""
    losses = (("divergence before", found.before), ("divergence", found.after), ("step", float(found.step)))
    figures = {each.path: (*losses, ("largest change", each.largest_change())) for each in factors}
    scales = [each.path for each in factors if isinstance(each.module, PackedWeight)]
    changed = list(figures) if found.step else scales
    of_base = runs_of(root.get_submodule(scales[0]))[-1].report.layers
    return Converted(
        root=root,
        modules=tuple(root.get_submodule(path) for path in changed),
        report=Report(layers=tuple(_lines(of_base, factors, figures, reasons, config))),
    )


def _lines(
    of_base: Sequence[LayerReport],
    factors: Sequence[Factor],
    figures: Mapping[str, tuple[tuple[str, float], ...]],
    reasons: Mapping[str, str],
    config: ScaleTuneConfig,
) -> Iterator[LayerReport]:
    """Yield the lines of the base, with what was done besides."""
    moved = {each.path for each in factors}
    for line in of_base:
        notes = [line.reason]
        if line.bits is not None:
            notes.append(f"codes by {config.base.name}")
            notes += [f"scales not tuned: {reasons[line.path]}"] if line.path in reasons else []
        elif line.path in moved:
            notes.append("its weight is tuned")
        yield attrs.evolve(
            line,
            algorithm=config.name,
            reason="; ".join(filter(None, notes)),
            figures=(*line.figures, *figures.get(line.path, ())),
        )
