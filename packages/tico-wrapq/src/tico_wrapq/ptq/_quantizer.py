"""PTQ: every module of a model in a wrapper, every point on the grid that calibration gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import ClassVar, Final, final

import attrs
from torch import nn

from tico_config import (
    Found,
    LifecycleError,
    Problem,
    PTQConfig,
)
from tico_modules import (
    Edit,
    LayerReport,
    Progress,
    Report,
    named_modules,
)
from tico_quantizers import BaseQuantizer, Converted, Example, Planned
from tico_quantizers.calibration import SPOILED, spoiled_figures, warn_of_spoiled
from tico_quantizers.layers import fused_experts
from tico_wrapq.base import (
    REGISTRY,
    Passage,
    PointCalibration,
    QuantModuleBase,
    QuantPoint,
    Role,
    WeightCodes,
    require_grids,
)
from tico_wrapq.ptq._folds import Fold, Folds, foldable
from tico_wrapq.ptq._lines import joined_notes, line_of, tied_weights, untied_notes, weight_figures
from tico_wrapq.ptq._planning import planned
from tico_wrapq.ptq._step_settling import IDLE, StepRefusal, idle_steps, settle_steps
from tico_wrapq.ptq._work import Work
from tico_wrapq.ptq._wrapping import Wrapped, wrap
from tico_wrapq.ptq._writes import InputWrites
from tico_wrapq.steps import StepPoints
from tico_wrapq.torch_nn import multiplies

SUSPICIOUS = 1e8
"""From this magnitude on, which may be a mask's stand-in for minus infinity, the report names a point."""

_ENDS: Final = (Role.ACTIVATION_IN, Role.ACTIVATION_OUT)

CALL_ENDS = ("smallest of call", "largest of call")
"""Of a point whose module is called several times in a pass, with ranges that differ by a lot."""


@final
class PTQCalibration(PointCalibration):
    """The wrappers of a model, whose points start to watch, and how much each module multiplies."""

    def __init__(self, wrapped: Wrapped, config: PTQConfig, folds: list[Fold], edit: Edit) -> None:
        self.wrapped = wrapped
        passage = Passage(_unfollowed_experts(wrapped, config))
        self.work = Work(self)
        self.folds = Folds(folds, self)
        refusal = StepRefusal(wrapped, config)
        super().__init__(wrapped.root, wrapped.wrappers.values(), passage, self.work, self.folds, refusal)
        passage.calibration = self
        for wrapper in wrapped.wrappers.values():
            wrapper.enable_calibration(passage)
        for path, module in self._multiplying():
            self.work.measure(path, module)
        for steps in wrapped.steps:
            steps.count_work(partial(self.work.add, steps.path))
        self.folds.watch()
        InputWrites(self).watch(wrapped.wrappers)
        for handle in self.handles:
            edit.on_undo(handle.remove)

    def _multiplying(self) -> list[tuple[str, nn.Module]]:
        wrappers = self.wrapped.wrappers
        measured = [
            (path, wrapper)
            for path, wrapper in wrappers.items()
            if type(wrapper).work is not QuantModuleBase.work
        ]
        left = {line.path for line in self.wrapped.left}
        inside = dict(named_modules(self.wrapped.root))
        return measured + [(path, inside[path]) for path in left if multiplies(inside[path])]

    def spoiled(self) -> dict[str, float]:
        """Return the inputs and outputs of at most 8 bits whose range one channel takes, by path.

        Tables of positions, which are other points, have channels of very different size by their nature.
        """
        ends = (point for point in self.points if point.declaration.role in _ENDS)
        few = (point for point in ends if point.spec.dtype.bits <= 8)
        shares = ((point.path, point.taken_by_one) for point in few)
        return {path: share for path, share in shares if share is not None and share >= SPOILED}

    def figures(self, path: str) -> tuple[tuple[str, float], ...]:
        """Return what was measured of the module at `path`, for its line of the report."""
        done = self.work.done.get(path)
        macs = () if not done else (("macs", float(done)),)
        wrapper = self.wrapped.wrappers.get(path)
        points = () if wrapper is None else wrapper.named_points()
        named = list(points)
        spoiled = (spoiled_figures(name, point.taken_by_one) for name, point in named)
        largest = ((f"{name} largest magnitude", point.largest) for name, point in named)
        return (
            *macs,
            *chain.from_iterable(spoiled),
            *(each for each in largest if each[1] >= SUSPICIOUS),
            *(figure for name, point in named for figure in _call_figures(name, point)),
        )


@final
class PTQQuantizer(BaseQuantizer[PTQConfig, PTQCalibration]):
    """Wraps a model, watches its points, and leaves integer layers and frozen points."""

    checks_target: ClassVar[bool] = True

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`: all but the steps of forwards, which data show."""
        return planned(model, self.config, edit)

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, PTQCalibration]:
        """Put the wrappers into the model and start to watch."""
        wrapped = wrap(model, self.config, REGISTRY.with_installed(), edit)
        folds = list(foldable(wrapped.root, self.config))
        return wrapped.root, PTQCalibration(wrapped, self.config, folds, edit)

    def convert(self, model: nn.Module, calibration: PTQCalibration, edit: Edit) -> Converted:
        """Put integer layers in the place of wrappers, and fix the points of the others."""
        wrappers, weights = calibration.wrapped.wrappers, WeightCodes()
        _require_in_place(model, wrappers)
        spoiled = calibration.spoiled()
        unfit = settle_steps(calibration.wrapped, self.config, edit)
        skipped = self._skipped(calibration.points, edit)
        require_grids(calibration.points)
        left = calibration.wrapped.left
        figures = {path: calibration.figures(path) for path in (*wrappers, *(line.path for line in left))}
        folded = {path: new for fold in calibration.folds.shown() for path, new in fold.finish().items()}
        idle, tied = idle_steps(wrappers), tied_weights(wrappers)
        finished: dict[str, nn.Module] = {}
        with Progress("PTQ", total=len(wrappers), show=calibration.ranks.number == 0, unit="module") as bar:
            for path, wrapper in wrappers.items():
                if path not in idle:
                    finished[path] = folded[path] if path in folded else wrapper.finish(weights, edit)
                    figures[path] += () if path in folded else weight_figures(wrapper, finished[path])
                    edit.settle(finished[path])
                bar.step(path)
        folding, routers = calibration.folds.notes(), calibration.wrapped.notes
        notes = joined_notes(routers, untied_notes(tied, finished), folding, skipped, unfit)
        root, lines = model, [*left, *(_idle_line(each) for each in idle.values())]
        for each in idle.values():
            each.leave(edit)
        for path, new in finished.items():
            wrapper = wrappers[path]
            root = edit.replace(root, wrapper, new) if new is not wrapper else root
            lines.append(line_of(path, wrapper, new, notes.get(path, "")))
        by_path = {line.path: attrs.evolve(line, figures=figures[line.path]) for line in lines}
        ordered = [by_path[path] for path, _ in named_modules(root) if path in by_path]
        warn_of_spoiled(spoiled)
        return Converted(root=root, modules=tuple(finished.values()), report=Report(layers=tuple(ordered)))

    def _skipped(self, points: Sequence[QuantPoint], edit: Edit) -> dict[str, str]:
        """Leave points that no data reached in float, if the config says so; return the notes by module."""
        watching = [point for point in points if point.statistics is not None]
        lacking = [point for point in watching if point.lacks_data]
        if self.config.on_uncalibrated == "error" or len(lacking) == len(watching):
            return {}
        names: dict[str, list[str]] = {}
        for point in lacking:
            point.fix(None, edit)
            module, _, name = point.path.rpartition(".")
            names.setdefault(module, []).append(name)
        return {
            module: f"no calibration data reached {', '.join(found)}, left float"
            for module, found in names.items()
        }


def _unfollowed_experts(wrapped: Wrapped, config: PTQConfig) -> tuple[str, ...]:
    """Return the paths of experts in one parameter that pick rows for modules below them, unseen."""
    if config.steps == "auto":
        return ()
    modules = ((path, each) for path, each in named_modules(wrapped.root) if path not in wrapped.wrappers)
    return tuple(path for path, each in modules if path and fused_experts(each) is not None)


def _idle_line(steps: StepPoints) -> LayerReport:
    return LayerReport(path=steps.path, module=steps.source, algorithm="ptq", reason=IDLE)


def _call_figures(name: str, point: QuantPoint) -> Iterator[tuple[str, float]]:
    for number, ends in enumerate(point.uneven_calls, start=1):
        yield from ((f"{name} {end} {number}", value) for end, value in zip(CALL_ENDS, ends, strict=True))


def _require_in_place(model: nn.Module, wrappers: Mapping[str, QuantModuleBase]) -> None:
    """Refuse a model whose modules were replaced since it was prepared.

    Raises:
        LifecycleError: with every wrapper that is gone.
    """
    there = {id(module) for _, module in named_modules(model)}
    gone = [
        Problem(
            module=path,
            field="model",
            value=Found("a model without it"),
            expected="the prepared model with this module in it",
            sentence="it has been taken out of the model since it was prepared",
            remedy="change the model before it is prepared",
        )
        for path, wrapper in wrappers.items()
        if id(wrapper) not in there
    ]
    if gone:
        raise LifecycleError(*gone)
