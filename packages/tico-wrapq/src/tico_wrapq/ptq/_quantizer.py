"""PTQ: every module of a model in a wrapper, every point on the grid that calibration gives it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import final

import attrs
from torch import nn

from tico_config import (
    CalibrationError,
    ConfigError,
    Found,
    LifecycleError,
    Problem,
    PTQConfig,
    UnsupportedError,
    unmatched_overrides,
)
from tico_modules import (
    Edit,
    LayerReport,
    QuantizedModule,
    Report,
    child_path,
    children,
    named_modules,
    parameter,
)
from tico_quantizers import BaseQuantizer, Converted, Example
from tico_quantizers.calibration import spoiled_figures
from tico_wrapq.base import (
    REGISTRY,
    Passage,
    PointCalibration,
    QuantModuleBase,
    QuantPoint,
    WeightCodes,
    require_grids,
)
from tico_wrapq.ptq._folds import Fold, Folds, foldable
from tico_wrapq.ptq._work import Work
from tico_wrapq.ptq._wrapping import Wrapped, wrap
from tico_wrapq.ptq._writes import InputWrites
from tico_wrapq.torch_nn import multiplies

SUSPICIOUS = 1e8
"""From this magnitude on, which may be a mask's stand-in for minus infinity, the report names a point."""

CALL_ENDS = ("smallest of call", "largest of call")
"""Of a point whose module is called several times in a pass, with ranges that differ by a lot."""


@final
class PTQCalibration(PointCalibration):
    """The wrappers of a model, whose points start to watch, and how much each module multiplies."""

    def __init__(self, wrapped: Wrapped, folds: list[Fold], edit: Edit) -> None:
        self.wrapped = wrapped
        passage = Passage()
        self.work = Work(self)
        self.folds = Folds(folds, self)
        super().__init__(wrapped.root, wrapped.wrappers.values(), passage, self.work, self.folds)
        passage.calibration = self
        for wrapper in wrapped.wrappers.values():
            wrapper.enable_calibration(passage)
        for path, module in self._multiplying():
            self.work.measure(path, module)
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

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, PTQCalibration]:
        """Put the wrappers into the model and start to watch."""
        wrapped = wrap(model, self.config, REGISTRY.with_installed(), edit)
        folds = list(foldable(wrapped.root, self.config))
        return wrapped.root, PTQCalibration(wrapped, folds, edit)

    def convert(self, model: nn.Module, calibration: PTQCalibration, edit: Edit) -> Converted:
        """Put integer layers in the place of wrappers, and fix the points of the others."""
        wrappers, weights = calibration.wrapped.wrappers, WeightCodes()
        _require_in_place(model, wrappers)
        unfit = self._settled_steps(calibration, edit)
        skipped = self._skipped(calibration.points, edit)
        require_grids(calibration.points)
        left = calibration.wrapped.left
        figures = {path: calibration.figures(path) for path in (*wrappers, *(line.path for line in left))}
        folded = {path: new for fold in calibration.folds.shown() for path, new in fold.finish().items()}
        finished = {
            path: folded[path] if path in folded else wrapper.finish(weights, edit)
            for path, wrapper in wrappers.items()
        }
        notes = _joined(_untied(wrappers, finished), calibration.folds.notes(), skipped, unfit)
        root, lines = model, list(left)
        for path, wrapper in wrappers.items():
            new = finished[path]
            root = edit.replace(root, wrapper, new) if new is not wrapper else root
            lines.append(_line(path, wrapper, new, notes.get(path, "")))
        by_path = {line.path: attrs.evolve(line, figures=figures[line.path]) for line in lines}
        ordered = [by_path[path] for path, _ in named_modules(root) if path in by_path]
        return Converted(root=root, modules=tuple(finished.values()), report=Report(layers=tuple(ordered)))

    def _settled_steps(self, calibration: PTQCalibration, edit: Edit) -> dict[str, str]:
        """Leave steps float to which no grid does justice; return the notes by module."""
        steps = calibration.wrapped.steps
        if not steps:
            return {}
        points = calibration.points
        if not points:
            remedy = "run data through the prepared model"
            found, sentence = Found("none"), "no calibration data have reached a step of the model"
            expected = "calibration data"
            raise CalibrationError(Problem(value=found, expected=expected, sentence=sentence, remedy=remedy))
        paths = [*calibration.wrapped.paths, *(point.path for point in points)]
        paths += [child_path(each.path, name) for each in steps for name in each.unknown]
        if problems := unmatched_overrides(self.config.overrides, paths):
            raise ConfigError(*problems)
        unknown = [problem for each in steps for problem in each.unknown_problems()]
        if self.config.strict_wrap and unknown:
            raise UnsupportedError(*unknown)
        notes = {each.path: each.leave_unfit(edit) for each in steps}
        return {path: note for path, note in notes.items() if note}

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


def _call_figures(name: str, point: QuantPoint) -> Iterator[tuple[str, float]]:
    for number, ends in enumerate(point.uneven_calls, start=1):
        yield from ((f"{name} {end} {number}", value) for end, value in zip(CALL_ENDS, ends, strict=True))


def _joined(*notes: Mapping[str, str]) -> dict[str, str]:
    paths = dict.fromkeys(path for each in notes for path in each)
    return {path: "; ".join(each[path] for each in notes if path in each) for path in paths}


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


def _untied(wrappers: Mapping[str, QuantModuleBase], finished: Mapping[str, nn.Module]) -> dict[str, str]:
    """Return a note for each module whose weight was tied to another's and whose codes are not."""
    users: dict[int, list[str]] = {}
    for path, wrapper in wrappers.items():
        for child in children(wrapper).values():
            users.setdefault(id(parameter(child, "weight")), []).append(path)
    users.pop(id(None), None)
    notes: dict[str, str] = {}
    for paths in users.values():
        codes = {id(getattr(finished[path], "packed", None)) for path in paths}
        if len(codes) > 1:
            notes |= {path: f"no longer tied: one weight of {', '.join(paths)}" for path in paths}
    return notes


def _line(path: str, wrapper: QuantModuleBase, new: nn.Module, note: str) -> LayerReport:
    return LayerReport(
        reason=note,
        path=path,
        module=wrapper.source,
        algorithm="ptq",
        weight=_weight_label(wrapper, new),
        activation=_activation_label(wrapper, new),
    )


def _weight_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    inner = children(new).get(wrapper.kept or "") if isinstance(new, QuantModuleBase) else new
    if not isinstance(inner, QuantizedModule):
        return "float"
    unit = "per row" if inner.group_size is None else f"group {inner.group_size}"
    kept = "" if wrapper.weight_specs else ", codes kept"
    return f"{inner.packed.dtype} {unit}{kept}"


def _activation_label(wrapper: QuantModuleBase, new: nn.Module) -> str:
    if isinstance(new, QuantizedModule):
        grids = {"act_in": new.act_in, "act_out": new.act_out}
    else:
        grids = {name: point.fixed for name, point in wrapper.named_points()}
    named = [f"{name} {grid.label}" for name, grid in grids.items() if grid is not None]
    return ", ".join(named) or "float"
