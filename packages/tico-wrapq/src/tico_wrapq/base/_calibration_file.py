"""What the points of a prepared model have seen, in a sealed file, for the same model prepared otherwise."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator

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
)
from tico_modules import named_modules
from tico_observers import (
    AbsMaxStatistic,
    ChannelRangeStatistic,
    EMAStatistic,
    Extremes,
    HistogramStatistic,
    RangeStatistic,
    Statistic,
    load_statistics,
    save_statistics,
)
from tico_wrapq.base._point import QuantPoint, require_data
from tico_wrapq.base._point_statistics import PointStatistics

# A point has no points below it, so that no other can have such a path.
_CHANNELS = ".channels"


def save_calibration(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write what the points of the prepared `model` have seen to `path`, for `load_calibration`.

    A file of histograms (`HistogramSpec`, `PercentileSpec`, `MSESpec`, `EntropySpec`) serves these and
    `MinMaxSpec`, with any number of bits; a file of ranges serves `MinMaxSpec`.

    Raises:
        LifecycleError: the model is not prepared, or none of its points waits for data.
        CalibrationError: points have seen no data.
        OSError: the file cannot be written; what was at `path` before is still there.

    >>> import tempfile
    >>> from tico_wrapq import PTQWrapper
    >>> layer = PTQWrapper(nn.Linear(4, 2))
    >>> layer.enable_calibration()
    >>> y = layer(torch.ones(3, 4))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save_calibration(layer, f"{folder}/seen")
    ...     load_calibration(layer, f"{folder}/seen")
    """
    watched = _watched(model)
    require_data(_points(model))
    seen: dict[str, Statistic] = {}
    for name, point in watched.items():
        seen[name] = point.statistics
        if not point.channels.is_empty:
            seen[f"{name}{_CHANNELS}"] = _by_channel(point.channels)
    save_statistics(path, seen)


def load_calibration(model: nn.Module, path: str | os.PathLike[str]) -> None:
    """Let the points of the prepared `model` have seen also what the file at `path` holds.

    The model may have been prepared with another config than the one that the file comes from: other
    formats, other observers, fewer points.

    Raises:
        LifecycleError: the model is not prepared, or none of its points waits for data.
        ArtifactError: the file is damaged or of another model; every path that differs is listed.
        CalibrationError: a point needs another kind of statistic; every such point is listed.
        OSError: the file cannot be read.

    After an error the model has seen what it had before.
    """
    watched = _watched(model)
    file = load_statistics(path)
    channels = {name for name in file if name.endswith(_CHANNELS) and name.removesuffix(_CHANNELS) in file}
    _require_same_paths(os.fspath(path), model, watched, file.keys() - channels)
    device = next((tensor.device for tensor in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    on_device = {name: _moved(statistic, device) for name, statistic in file.items()}
    problems: list[Problem] = []
    merged: dict[str, PointStatistics] = {}
    for name, point in watched.items():
        try:
            merged[name] = point.merge(on_device[name], on_device.get(f"{name}{_CHANNELS}"))
        except TicoError as error:
            problems += [attrs.evolve(problem, module=name) for problem in error.problems]
    if problems:
        raise CalibrationError(*problems)
    for each in _points(model):
        if each.path in merged:
            each.resume(merged[each.path])


def _watched(model: nn.Module) -> dict[str, PointStatistics]:
    """Return what the points of `model` that watch have seen, by path.

    Raises:
        LifecycleError: there are none.
    """
    watched = {point.path: point.statistics for point in _points(model) if point.statistics is not None}
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


def _points(model: nn.Module) -> Iterator[QuantPoint]:
    return (module for _, module in named_modules(model) if isinstance(module, QuantPoint))


def _by_channel(seen: ChannelRangeStatistic) -> AbsMaxStatistic:
    """Return the range of each channel in the form that files hold."""
    axis = PerChannel(axis=-1)
    return AbsMaxStatistic(granularity=axis, seen=RangeStatistic(granularity=axis, extremes=seen.channels))


def _require_same_paths(
    file: str, model: nn.Module, watched: Collection[str], saved: Collection[str]
) -> None:
    """Refuse a file that lacks a point, or has one of a module that the model lacks.

    Raises:
        ArtifactError: with every such point.
    """
    modules = {path for path, _ in named_modules(model)}
    lacking = [
        Problem(
            module=file,
            field=name,
            value=Found("a file without it"),
            expected="among the points saved",
            sentence=f"the model has the point {name}, which was not saved",
        )
        for name in sorted(set(watched) - set(saved))
    ]
    foreign = [
        Problem(
            module=file,
            field=name,
            value=Found("one of a module that the model lacks"),
            expected="a point of the model",
            sentence=f"{name} was saved, and the model has no such module",
        )
        for name in sorted(set(saved) - set(watched))
        if name.rpartition(".")[0] not in modules
    ]
    if lacking or foreign:
        first, *others = (*lacking, *foreign)
        raise ArtifactError(first, *others)


def _moved(statistic: Statistic, device: torch.device) -> Statistic:
    """Return `statistic` with its tensors on `device`."""
    if isinstance(statistic, AbsMaxStatistic):
        seen = _moved(statistic.seen, device)
        return attrs.evolve(statistic, seen=seen) if isinstance(seen, RangeStatistic) else statistic
    if not isinstance(statistic, RangeStatistic | EMAStatistic | HistogramStatistic):
        return statistic
    if (span := statistic.extremes) is not None:
        ends = Extremes(minimum=span.minimum.to(device), maximum=span.maximum.to(device))
        statistic = attrs.evolve(statistic, extremes=ends)
    if isinstance(statistic, HistogramStatistic):
        return attrs.evolve(statistic, keys=statistic.keys.to(device), counts=statistic.counts.to(device))
    return statistic
