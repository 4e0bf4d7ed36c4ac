"""What layers have read, as the named statistics that calibration files hold, and back.

A layer at `path` has a Gram matrix ``path|gram``, or ``path|gram.0``, ``path|gram.1`` and so on where its
channels are in groups, and the range of each of its input features, ``path|absmax``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import TypeVar

import attrs
import torch
from torch import Tensor

from tico_config import ArtifactError, CalibrationError, Found, Problem
from tico_observers import (
    AbsMaxStatistic,
    EMAStatistic,
    Extremes,
    GramStatistic,
    HistogramStatistic,
    RangeStatistic,
    Statistic,
)
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.layers import Layer, columns, groups, shape

GRAM = "|gram"
ABSMAX = "|absmax"
_NAMES = {GRAM: "Gram matrices", ABSMAX: "ranges of input features"}
_SOURCES = {
    GRAM: "a calibration of GPTQConfig(), AWQConfig() or SmoothQuantConfig(alpha='auto') has them",
    ABSMAX: "a calibration of GPTQConfig(), AWQConfig() or SmoothQuantConfig() has them, and one of"
    " PTQConfig() where inputs have grids",
}
S = TypeVar("S", bound=Statistic)


def layer_statistics(path: str, read: GroupedGram) -> Iterator[tuple[str, Statistic]]:
    """Yield by name what the layer at `path` has read."""
    several = len(read.parts) > 1
    for number, part in enumerate(read.parts):
        yield f"{path}{GRAM}.{number}" if several else f"{path}{GRAM}", part
    yield f"{path}{ABSMAX}", read.features


def require_layers(statistics: Mapping[str, Statistic], paths: Collection[str], kind: str) -> None:
    """Refuse `statistics` that lack those of `kind`, `GRAM` or `ABSMAX`, of a layer at one of `paths`.

    Raises:
        CalibrationError: with every such layer, or in one sentence if there are none of any layer.
    """
    known = {name.rpartition("|")[0] for name in statistics if kind in name}
    lacking = [path for path in paths if path not in known]
    if not lacking:
        return
    if not known:
        sentence = f"it has no {_NAMES[kind]} of layers, and these are what is needed"
        raise CalibrationError(_lacking(None, kind, sentence))
    sentence = f"the calibration file has no {_NAMES[kind]} of it, as it was left out of that calibration"
    raise CalibrationError(*(_lacking(path, kind, sentence) for path in lacking))


def _lacking(path: str | None, kind: str, sentence: str) -> Problem:
    return Problem(
        module=path,
        field="statistics",
        value=Found("none"),
        expected=f"a file with {_NAMES[kind]} of every layer",
        sentence=sentence,
        remedy=_SOURCES[kind],
    )


def read_gram(path: str, layer: Layer, statistics: Mapping[str, Statistic]) -> GroupedGram:
    """Return what the layer at `path` has read, as `statistics` tell.

    Raises:
        ArtifactError: they are of another layer.
    """
    count, width, device = groups(layer), columns(layer), device_of(layer)
    names = [f"{path}{GRAM}"] if count == 1 else [f"{path}{GRAM}.{number}" for number in range(count)]
    parts = [statistics.get(name) for name in names]
    grams = tuple(moved(part, device) for part in parts if isinstance(part, GramStatistic))
    if len(grams) < count or {(part.columns, part.rows) for part in grams} != {(width, grams[0].rows)}:
        raise _of_another_layer(f"{path}{GRAM}", f"{count} Gram matrices of {width} columns")
    rows = float(grams[0].rows)
    features = statistics.get(f"{path}{ABSMAX}")
    known = isinstance(features, AbsMaxStatistic)
    return GroupedGram(grams, rows, rows, read_range(path, layer, statistics) if known else AbsMaxStatistic())


def read_range(path: str, layer: Layer, statistics: Mapping[str, Statistic]) -> AbsMaxStatistic:
    """Return the range of each input feature of the layer at `path`, as `statistics` tell.

    Raises:
        ArtifactError: they are of another layer.
    """
    found, features = statistics.get(f"{path}{ABSMAX}"), shape(layer)[1] * groups(layer)
    if isinstance(found, AbsMaxStatistic):
        seen = found.seen.extremes
        if found.granularity == AbsMaxStatistic().granularity and (
            seen is None or seen.minimum.shape == (features,)
        ):
            return moved(found, device_of(layer))
    raise _of_another_layer(f"{path}{ABSMAX}", f"a range of each of {features} input features")


def _of_another_layer(name: str, expected: str) -> ArtifactError:
    return ArtifactError(Problem(field=name, value=Found("something else"), expected=expected))


def device_of(layer: Layer) -> torch.device:
    """Return the device that `layer` is on."""
    stored = (*layer.parameters(), *layer.buffers())
    return next((tensor.device for tensor in stored), torch.device("cpu"))


def moved(statistic: S, device: torch.device) -> S:
    """Return `statistic` with its tensors on `device`; one of a kind unknown here as it is."""
    match statistic:
        case AbsMaxStatistic(seen=seen):
            return attrs.evolve(statistic, seen=moved(seen, device))
        case GramStatistic():
            return attrs.evolve(
                statistic, upper=_all_on(device, statistic.upper), pending=_all_on(device, statistic.pending)
            )
        case HistogramStatistic(keys=keys, counts=counts):
            ends = _on(device, statistic.extremes)
            return attrs.evolve(statistic, extremes=ends, keys=keys.to(device), counts=counts.to(device))
        case RangeStatistic() | EMAStatistic():
            return attrs.evolve(statistic, extremes=_on(device, statistic.extremes))
        case _:
            return statistic


def _all_on(device: torch.device, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(tensor.to(device) for tensor in tensors)


def _on(device: torch.device, ends: Extremes | None) -> Extremes | None:
    if ends is None:
        return None
    return Extremes(minimum=ends.minimum.to(device), maximum=ends.maximum.to(device))
