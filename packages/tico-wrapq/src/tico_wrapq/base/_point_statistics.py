"""What one point has seen in the forward passes of a calibration."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import final

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, NumericsError, PerChannel, PerTensor, Problem
from tico_observers import (
    AbsMaxStatistic,
    AffineParams,
    AnyObserver,
    ChannelRangeReader,
    ChannelRangeStatistic,
    EMAStatistic,
    Extremes,
    HistogramStatistic,
    JoinedRanges,
    MinMaxObserver,
    RangeStatistic,
    Statistic,
    merge_channels,
    params_from_range,
    require_plausible,
)
from tico_wrapq.base._call_ranges import CallRanges


@final
@attrs.define(eq=False)
class RangeTable:
    """The ranges of points that are seen together; replaced as a whole when a forward pass is counted."""

    ranges: JoinedRanges


@final
@attrs.frozen(eq=False)
class Place:
    """Where the ranges of one point are."""

    table: RangeTable
    index: int

    @property
    def channels(self) -> Extremes:
        """The range of each channel of the point."""
        return self.table.ranges[self.index]


@final
class PointStatistics:
    """What a point has seen in finished forward passes, and in the one under way.

    A grid over the range of a whole tensor needs only the ranges of its channels; whether these are finite is
    checked once a forward pass, for all points together. For any other grid the observer collects the tensor.

    Args:
        observer: without data; it determines the grid in the end, and has the path of the point as its name.
        axis: of the channels, the last one where it is None.
        of_heads: whether these are the heads of an attention, and not channels of images or signals.
    """

    def __init__(self, observer: AnyObserver, axis: int | None, *, of_heads: bool = False) -> None:
        self._observer = observer
        self.axis = -1 if axis is None else axis
        # Where padding is looked for, channels before others are on axis 1, and heads on axis -3.
        self.padding_axis = 1 if self.axis < -1 and not of_heads else self.axis
        spans = isinstance(observer, MinMaxObserver) and observer.granularity == PerTensor()
        self.spans_range = spans and observer.on_nonfinite == "error"
        self.path = observer.name
        self.owner = observer.name.rpartition(".")[0]
        self.batches = 0
        self.place: Place | None = None
        self.latest: Extremes | None = None
        self._collecting: AnyObserver | None = None
        self.calls = CallRanges()

    @property
    def channels(self) -> ChannelRangeStatistic:
        """The range of each channel, of everything that counts."""
        channels = None if self.place is None else self.place.channels
        return ChannelRangeStatistic(axis=self.axis, channels=channels)

    def see(self, x: Tensor, reader: ChannelRangeReader) -> None:
        """Note what `x` shows, until the forward pass ends; what `reader` knows of it is not read again."""
        if not self.spans_range:
            if self._collecting is None:
                self._collecting = copy.copy(self._observer)
            self._collecting.collect(x)
            if self._observer.on_nonfinite == "ignore":
                return  # the values left out would count
        seen = reader.read(x, self.axis, self.path)
        if seen is not None:
            self.calls.see(seen)
            self.latest = seen if self.latest is None else merge_channels(self.latest, seen)

    @property
    def is_unseen_range(self) -> bool:
        """Whether it is to hold the range of a whole tensor, and was shown nothing at all."""
        return self.spans_range and self.place is None and self.is_untouched

    @property
    def is_untouched(self) -> bool:
        """Whether the forward pass under way has shown nothing yet."""
        return self.latest is None and self._collecting is None

    def merge_latest(self, latest: Extremes) -> Extremes:
        """Return `latest` merged with the ranges that count already, without counting it."""
        return latest if self.place is None else merge_channels(self.place.channels, latest)

    def drop_unfinished(self) -> None:
        """Forget what the forward pass under way has shown."""
        self.calls.drop_unfinished()
        self._collecting = self.latest = None

    def accept(self) -> None:
        """Count what the forward pass under way has shown; its ranges are in the table already."""
        self._observer = self._collecting or self._observer
        self.batches += 1
        self.calls.accept()
        self._collecting = self.latest = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts yet."""
        return self.place is None if self.spans_range else self._observer.statistics.is_empty

    @property
    def statistics(self) -> Statistic:
        """What has been seen, as the observer keeps it."""
        if not self.spans_range:
            return self._observer.statistics
        with torch.inference_mode(mode=False):
            return RangeStatistic(extremes=self.channels.extremes)

    @property
    def largest(self) -> float:
        """The largest magnitude seen, 0 where nothing was, or where no range is kept."""
        seen = self.statistics
        if not isinstance(seen, RangeStatistic | EMAStatistic | HistogramStatistic) or seen.extremes is None:
            return 0.0
        return max(seen.extremes.maximum.amax().item(), -seen.extremes.minimum.amin().item())

    def observer(self) -> AnyObserver:
        """Return an observer of its own that has seen all of it; its grid is not fixed."""
        if not self.spans_range:
            return copy.copy(self._observer)
        return self._observer.merge_statistics(self.statistics)

    def params(self) -> AffineParams:
        """Return the grid that all of it determines.

        Raises:
            CalibrationError: nothing has been seen.
            NumericsError: the range is none that a trained network computes, or needs a scale that float32
                cannot hold.
        """
        return self._params_of_range() or self.observer().params

    def _params_of_range(self) -> AffineParams | None:
        """Return what the observer of a plain range would, without the way through its statistic."""
        plain = self._observer if isinstance(self._observer, MinMaxObserver) else None
        if plain is None or not self.spans_range or self.place is None:
            return None
        seen, symmetric = self.place.channels, plain.symmetric
        with torch.inference_mode(mode=False):
            ends = Extremes(minimum=seen.minimum.amin(), maximum=seen.maximum.amax())
            try:
                low, high = (span := require_plausible(ends)).minimum, span.maximum
                return params_from_range(low, high, plain.dtype, symmetric=symmetric, granularity=PerTensor())
            except NumericsError:
                return None  # the observer names itself in the error

    def merge(self, statistics: Statistic, channels: Statistic | None) -> PointStatistics:
        """Return statistics that have also seen what `statistics` and, by channel, `channels` hold.

        Raises:
            CalibrationError: the grid needs a statistic of another kind, or of other units or settings.
            UnsupportedError: the statistic depends on the order of the data.
        """
        merged = copy.copy(self)
        merged.drop_unfinished()
        with torch.inference_mode(mode=False):
            observer = self._observer.merge_statistics(_fitting(statistics, self._observer))
            seen = channels.seen.extremes if isinstance(channels, AbsMaxStatistic) else None
            if seen is not None:
                merged.place = Place(RangeTable(JoinedRanges.of([self.merge_latest(seen)])), 0)
        merged.batches += 1
        merged._observer = self._observer if self.spans_range else observer
        return merged

    def tell(self) -> ToldPoint:
        """Return all that counts, for other ranks."""
        channels = None if self.place is None else self.place.channels
        return ToldPoint(self.statistics, channels, self.calls.shown, self.batches)

    def after(self, told: Sequence[ToldPoint]) -> PointStatistics:
        """Return what has seen what all ranks have `told`.

        Raises:
            UnsupportedError: the statistic depends on the order of the data.
        """
        found = copy.copy(self)
        found._observer = copy.copy(self._observer)
        found._observer.reset()
        found.place = None
        for each in told:
            if not each.statistics.is_empty:
                axis = PerChannel(axis=-1)
                seen = RangeStatistic(granularity=axis, extremes=each.channels)
                found = found.merge(each.statistics, AbsMaxStatistic(granularity=axis, seen=seen))
        found.calls = CallRanges.joined(each.calls for each in told)
        found.batches = sum(each.batches for each in told)
        return found


@attrs.frozen(eq=False)
class ToldPoint:
    """What a point has seen on one rank: of the whole, by channel, by call, and in how many passes."""

    statistics: Statistic
    channels: Extremes | None
    calls: tuple[Extremes, ...]
    batches: int


def _fitting(statistics: Statistic, observer: AnyObserver) -> Statistic:
    """Return `statistics`, or of a histogram its range where `observer` needs no more.

    Raises:
        CalibrationError: it needs a statistic of another kind.
    """
    wanted = type(observer.statistics)
    if wanted is RangeStatistic and isinstance(statistics, HistogramStatistic):
        return RangeStatistic(
            granularity=statistics.granularity,
            extremes=statistics.extremes,
            on_nonfinite=statistics.on_nonfinite,
            dropped=statistics.dropped,
        )
    if isinstance(statistics, wanted):
        return statistics
    found, expected = Found(f"a {type(statistics).__name__}"), f"a {wanted.__name__}"
    remedy = "calibrate with a histogram, for example HistogramSpec(), which serves every kind but EMASpec()"
    sentence = f"its grid follows from {expected}, and the file has {found}"
    raise CalibrationError(
        Problem(field="statistics", value=found, expected=expected, sentence=sentence, remedy=remedy)
    )
