"""How the tuning of scales meets a model: the base quantizes it, then the scales of all layers are moved."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, Final, final

import attrs
from torch import nn

from tico_config import ConfigError, Found, Problem, ScaleTuneConfig, UnsupportedError
from tico_modules import Edit, LayerReport, PackedWeight, Report, named_modules, runs_of
from tico_quantizers.algorithms.scale_tune._calibration import ScaleTuneCalibration
from tico_quantizers.algorithms.scale_tune._divergence import Divergences
from tico_quantizers.calibration import quiet_runs
from tico_quantizers.conversion import Progress
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
        root, base = self._base.start(model, example, edit)
        return root, ScaleTuneCalibration(base)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what the base would make of `model`; tuning changes the values of scales alone."""
        self._require_possible(model)
        planned = self._base.planned(model, edit)
        _, reasons = _tunable(planned.converted.root, self.config)
        lines = _lines(planned.converted.report.layers, {}, reasons, self.config)
        report = Report(layers=tuple(lines))
        converted = attrs.evolve(planned.converted, report=report)
        return attrs.evolve(planned, converted=converted, notes=(*planned.notes, _NOTE))

    def convert(self, model: nn.Module, calibration: ScaleTuneCalibration, edit: Edit) -> Converted:
        """Let the base put integers in the place of floats, and move their scales."""
        before = TreeState.of(model)
        root = calibration.base.convert(model, edit)
        factors, reasons = _tunable(root, self.config)
        samples = calibration.samples()
        split = Split.of(len(samples), share=self.config.held_out, seed=self.config.seed)
        loss = Divergences(before=before, model=root, samples=samples, factors=factors)
        found = self._tuned(loss, split, calibration)
        if found.step:
            for factor in factors:
                factor.put(edit)
        return _converted(root, factors, reasons, found, self.config)

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
        sentence="its weight is quantized already, and nothing remembers the float model that its scales"
        " would be tuned against",
        remedy=f"prepare the float model with ScaleTuneConfig(base={base}(…)), which quantizes it and then"
        " tunes the scales",
    )


def _tunable(root: nn.Module, config: ScaleTuneConfig) -> tuple[tuple[Factor, ...], Mapping[str, str]]:
    """Return the scales of `root` that move, and why others do not, by path.

    Raises:
        ConfigError: there are none; with the reasons.
    """
    factors, reasons = scales_of(root)
    left = {
        factor.path: why for factor in factors if (why := config.reason_to_leave(factor.path)) is not None
    }
    moved = tuple(factor for factor in factors if factor.path not in left)
    if not moved:
        why = "; ".join(dict.fromkeys([*reasons.values(), *left.values()])) or "it leaves no integers"
        sentence = f"{type(config.base).__name__} leaves no scales that can be tuned: {why}"
        expected = "the config of an algorithm that makes integer weights"
        raise ConfigError(
            Problem(
                field="base", value=Found(type(config.base).__name__), expected=expected, sentence=sentence
            )
        )
    return moved, {**reasons, **left}


def _converted(
    root: nn.Module,
    factors: Sequence[Factor],
    reasons: Mapping[str, str],
    found: Descent,
    config: ScaleTuneConfig,
) -> Converted:
    """Return the result, with a line for each that the base has one for."""
    figures = {
        factor.path: (
            ("divergence before", found.before),
            ("divergence", found.after),
            ("step", float(found.step)),
            ("largest change of a scale", factor.largest_change()),
        )
        for factor in factors
    }
    modules = {path: root.get_submodule(path) for path in figures}
    of_base = next(runs[-1].report.layers for each in modules.values() if (runs := runs_of(each)))
    lines = tuple(_lines(of_base, figures, reasons, config))
    return Converted(root=root, modules=tuple(modules.values()), report=Report(layers=lines))


def _lines(
    of_base: Sequence[LayerReport],
    figures: Mapping[str, tuple[tuple[str, float], ...]],
    reasons: Mapping[str, str],
    config: ScaleTuneConfig,
) -> Iterator[LayerReport]:
    """Yield the lines of the base, with what was done besides."""
    for line in of_base:
        notes = [line.reason]
        if line.bits is not None:
            notes += [
                f"codes by {config.base.name}",
                f"scales not tuned: {reasons[line.path]}" if line.path in reasons else "",
            ]
        yield attrs.evolve(
            line,
            algorithm=config.name,
            reason="; ".join(filter(None, notes)),
            figures=(*line.figures, *figures.get(line.path, ())),
        )
