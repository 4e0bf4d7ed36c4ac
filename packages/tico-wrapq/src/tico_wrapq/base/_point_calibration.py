"""What the points of wrappers have seen, as the named statistics that calibration files hold, and back."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import ClassVar

import attrs
import torch
from torch import nn

from tico_config import (
    ArtifactError,
    CalibrationError,
    Found,
    LifecycleError,
    PerChannel,
    Problem,
    TicoError,
    UnsupportedError,
)
from tico_modules import Edit, Layout, named_modules
from tico_observers import (
    AbsMaxStatistic,
    ChannelRangeStatistic,
    RangeStatistic,
    Statistic,
)
from tico_quantizers import Calibration, Recorder
from tico_quantizers.calibration import ABSMAX, moved
from tico_wrapq.base._declaration import ACT_IN
from tico_wrapq.base._passage import Passage
from tico_wrapq.base._point import QuantPoint, require_data
from tico_wrapq.base._point_statistics import PointStatistics, ToldPoint
from tico_wrapq.base._quant_module_base import QuantModuleBase

# A point has no points below it, so that no other can have such a path.
_CHANNELS = ".channels"


class PointCalibration(Calibration):
    """What the `points` of wrappers in the model `root` see in the forward passes that count.

    The ranges of the input features of a layer, where its input has a grid, serve other algorithms too.
    """

    told_by_recorders: ClassVar[bool] = True

    def __init__(
        self,
        root: nn.Module,
        wrappers: Iterable[QuantModuleBase],
        passage: Passage,
        *recorders: Recorder,
    ) -> None:
        self._wrappers = tuple(wrappers)
        self._root = root
        super().__init__(passage, *recorders)

    @property
    def points(self) -> list[QuantPoint]:
        """The points that there are by now."""
        return [point for wrapper in self._wrappers for _, point in wrapper.named_points()]

    def statistics(self) -> Mapping[str, Statistic]:
        """Return what the points have seen, by path.

        Raises:
            LifecycleError: no point waits for data.
            CalibrationError: points have seen none.
        """
        watched = _watched(self.points)
        require_data(self.points)
        seen: dict[str, Statistic] = {}
        for name, point in watched.items():
            seen[name] = point.statistics
            if not point.channels.is_empty:
                seen[f"{name}{_CHANNELS}"] = _by_channel(point.channels)
                layer, _, role = name.rpartition(".")
                if role == ACT_IN.name:
                    seen[f"{layer}{ABSMAX}"] = _by_channel(point.channels)
        return seen

    def adopt(self, statistics: Mapping[str, Statistic]) -> None:
        """Let the points have seen also what `statistics` tell of them.

        Raises:
            LifecycleError: no point waits for data.
            ArtifactError: they are of another model; every path that differs is listed.
            CalibrationError: a point needs another kind of statistic; every such point is listed.
        """
        waiting = [point for wrapper in self._wrappers for point in wrapper.waiting_points()]
        watched = _watched(waiting)
        # Data of one's own may have reached steps that those of the file have not.
        own = {each.path for wrapper in self._beside() for each in wrapper.waiting_points()}
        needed = watched.keys() - {name for name in own if name in watched and not watched[name].is_empty}
        found = self._of_points(needed, watched, statistics)
        merged = _merged({name: each for name, each in watched.items() if name in found}, found)
        for each in waiting:
            if each.path in merged:
                each.resume(merged[each.path])

    def findings(self) -> Mapping[str, object]:
        """Return what was found out about steps, by the path of their module."""
        return {wrapper.path: wrapper.known_findings() for wrapper in self._beside()}

    def adopt_findings(self, findings: Layout, edit: Edit) -> None:
        """Have found also what `findings` tell.

        Raises:
            ArtifactError: a value is missing or of another type.
        """
        own = {wrapper.path: wrapper for wrapper in self._beside()}
        for path, found in findings.children():
            if path in own:
                own[path].adopt_findings(found, edit)

    def tell(self) -> object:
        """Return what the points have seen, what was found out about steps, and what the recorders tell."""
        waiting = (point for wrapper in self._wrappers for point in wrapper.waiting_points())
        seen = {each.path: each.statistics.tell() for each in waiting if each.statistics is not None}
        return _Told(super().tell(), seen, self.findings())

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Have the points see, and find, what those of all ranks have.

        Raises:
            UnsupportedError: a point has a statistic that depends on the order of the data; with all of them.
        """
        all_told = [each for each in told if isinstance(each, _Told)]
        super().hear([each.by_recorder for each in all_told], edit)
        for rank, each in enumerate(all_told):
            self.adopt_findings(Layout(f"what rank {rank} tells", each.findings), edit)
        problems: list[Problem] = []
        for point in (point for wrapper in self._wrappers for point in wrapper.waiting_points()):
            seen = [each.points[point.path] for each in all_told if point.path in each.points]
            try:
                point.hear(seen, edit)
            except UnsupportedError as error:
                problems += [attrs.evolve(problem, module=point.path) for problem in error.problems]
        if problems:
            raise UnsupportedError(*problems)

    def _beside(self) -> list[QuantModuleBase]:
        return [wrapper for wrapper in self._wrappers if wrapper.stands_beside]

    def _of_points(
        self, needed: Collection[str], known: Collection[str], statistics: Mapping[str, Statistic]
    ) -> dict[str, Statistic]:
        """Return those of points, on the device of the model; `needed` points have to be among them."""
        own = {name: statistic for name, statistic in statistics.items() if "|" not in name}
        if statistics and not own:
            raise CalibrationError(_NO_POINTS)
        channels = {name for name in own if name.endswith(_CHANNELS) and name.removesuffix(_CHANNELS) in own}
        _require_same_paths(self._root, needed, known, own.keys() - channels)
        stored = (*self._root.parameters(), *self._root.buffers())
        device = next((tensor.device for tensor in stored), torch.device("cpu"))
        return {name: moved(statistic, device) for name, statistic in own.items()}


@attrs.frozen(eq=False)
class _Told:
    """What one rank tells: by its recorders, its points by path, and its steps."""

    by_recorder: object
    points: Mapping[str, ToldPoint]
    findings: Mapping[str, object]


_NO_POINTS = Problem(
    field="statistics",
    value=Found("none of points"),
    expected="a file with what quantization points have seen",
    sentence="it has no statistics of quantization points, and these are what is needed",
    remedy="a calibration of PTQConfig() has them",
)


def _merged(
    watched: Mapping[str, PointStatistics], statistics: Mapping[str, Statistic]
) -> dict[str, PointStatistics]:
    """Return what the points have seen with what `statistics` tell.

    Raises:
        CalibrationError: a point needs another kind of statistic; every such point is listed.
    """
    problems: list[Problem] = []
    merged: dict[str, PointStatistics] = {}
    for name, point in watched.items():
        try:
            merged[name] = point.merge(statistics[name], statistics.get(f"{name}{_CHANNELS}"))
        except TicoError as error:
            problems += [attrs.evolve(problem, module=name) for problem in error.problems]
    if problems:
        raise CalibrationError(*problems)
    return merged


def _watched(points: Sequence[QuantPoint]) -> dict[str, PointStatistics]:
    """Return what the points that watch have seen, by path.

    Raises:
        LifecycleError: there are none.
    """
    watched = {point.path: point.statistics for point in points if point.statistics is not None}
    if not watched:
        remedy = "call prepare(model, PTQConfig()) first"
        expected = "a prepared model with points that wait for data"
        raise LifecycleError(
            Problem(
                field="model",
                value=Found("a model without any"),
                expected=expected,
                sentence="no point of the model waits for data",
                remedy=remedy,
            )
        )
    return watched


def _by_channel(seen: ChannelRangeStatistic) -> AbsMaxStatistic:
    """Return the range of each channel in the form that files hold."""
    axis = PerChannel(axis=-1)
    return AbsMaxStatistic(granularity=axis, seen=RangeStatistic(granularity=axis, extremes=seen.channels))


def _require_same_paths(
    model: nn.Module, needed: Collection[str], known: Collection[str], saved: Collection[str]
) -> None:
    """Refuse statistics that lack a `needed` point, or have one of a module that the model lacks.

    Raises:
        ArtifactError: with every such point.
    """
    modules = {path for path, _ in named_modules(model)}
    lacking = [
        Problem(
            field=name,
            value=Found("a file without it"),
            expected="among the points saved",
            sentence=f"the model has the point {name}, which was not saved",
        )
        for name in sorted(set(needed) - set(saved))
    ]
    foreign = [
        Problem(
            field=name,
            value=Found("one of a module that the model lacks"),
            expected="a point of the model",
            sentence=f"{name} was saved, and the model has no such module",
        )
        for name in sorted(set(saved) - set(known))
        if name.rpartition(".")[0] not in modules
    ]
    if lacking or foreign:
        first, *others = (*lacking, *foreign)
        raise ArtifactError(first, *others)
