"""What one point sees in the forward passes of a calibration."""

from __future__ import annotations

import copy
from typing import final

import torch
from torch import Tensor

from tico_config import CalibrationError, Found, NumericsError, PerTensor, Problem
from tico_observers import (
    AbsMaxStatistic,
    AffineParams,
    AnyObserver,
    HistogramStatistic,
    MinMaxObserver,
    RangeStatistic,
    Statistic,
    params_from_range,
)
from tico_wrapq._channel_range import ChannelRange, KnownRanges, Stretch


@final
class Watching:
    """The tensor goes through and is seen.

    A grid that spans the range of a whole tensor needs the range of its channels only, and whether these are
    finite is asked once a forward pass for all points together. Any other grid has its observer collect.

    Args:
        observer: without data; it determines the grid in the end.
        axis: of the channels.
    """

    def __init__(self, observer: AnyObserver, axis: int) -> None:
        self._observer = observer
        self._axis = axis
        spans = isinstance(observer, MinMaxObserver) and observer.granularity == PerTensor()
        self.spans_range = spans and observer.on_nonfinite == "error"
        self._collecting: AnyObserver | None = None
        self.latest: ChannelRange | None = None
        self._next: ChannelRange | None = None
        self._own: ChannelRange | None = None
        self._place: Stretch | None = None
        self.batches = 0

    @property
    def channels(self) -> ChannelRange | None:
        """The range of each channel, of all that counts."""
        return self._own if self._place is None else self._place.channels

    def see(self, x: Tensor, known: KnownRanges) -> None:
        """Note what `x` shows, until the forward pass ends; what is `known` of it is not read again."""
        if not self.spans_range:
            if self._collecting is None:
                self._collecting = copy.copy(self._observer)
            self._collecting.collect(x)
            if self._observer.on_nonfinite == "ignore":
                return  # the values left out would count
        seen = known.of(x, self._axis, self._observer.name)
        if seen is not None:
            self.latest = seen if self.latest is None else self.latest.merge(seen)

    @property
    def is_untouched(self) -> bool:
        """Whether the forward pass under way has shown nothing yet."""
        return self.latest is None and self._collecting is None

    def drop_unfinished(self) -> None:
        """Forget what the forward pass under way has shown."""
        self._collecting = self.latest = self._next = None

    def digest(self) -> ChannelRange | None:
        """Return what the pass has shown merged with what counts already, without counting it."""
        self._next = self.channels
        if self.latest is not None:
            self._next = self.latest if self._next is None else self._next.merge(self.latest)
        return self._next

    def accept(self) -> None:
        """Count what was digested."""
        self._own, self._place = self._next, None
        self._end()

    def accept_at(self, place: Stretch) -> None:
        """Count what the pass has shown, which was merged with that of other points and is at `place`."""
        self._own, self._place = None, place
        self._end()

    def _end(self) -> None:
        self._observer = self._collecting or self._observer
        self.batches += 1
        self._collecting = self.latest = self._next = None

    @property
    def is_empty(self) -> bool:
        """Whether nothing counts yet."""
        unseen = self._own is None and self._place is None
        return unseen if self.spans_range else self._observer.statistics.is_empty

    @property
    def statistics(self) -> Statistic:
        """What has been seen, as the observer keeps it."""
        if not self.spans_range:
            return self._observer.statistics
        with torch.inference_mode(mode=False):
            return RangeStatistic(extremes=None if self.channels is None else self.channels.extremes())

    def observer(self) -> AnyObserver:
        """Return an observer of its own that has seen all of it; its grid is not fixed."""
        if not self.spans_range:
            return copy.copy(self._observer)
        return self._observer.merge_statistics(self.statistics)

    def params(self) -> AffineParams:
        """Return the grid that all of it determines.

        Raises:
            CalibrationError: nothing has been seen.
            NumericsError: the range needs a scale that float32 cannot hold.
        """
        return self._params_of_range() or self.observer().params

    def _params_of_range(self) -> AffineParams | None:
        """Return what the observer of a plain range would, without the way through its statistic."""
        plain = self._observer if isinstance(self._observer, MinMaxObserver) else None
        seen = self.channels
        if plain is None or not self.spans_range or seen is None:
            return None
        with torch.inference_mode(mode=False):
            low, high = seen.low.amin(), seen.high.amax()
            try:
                return params_from_range(
                    low, high, plain.dtype, symmetric=plain.symmetric, granularity=PerTensor()
                )
            except NumericsError:
                return None  # the observer names itself in the error

    def merged(self, statistics: Statistic, channels: Statistic | None) -> Watching:
        """Return one that has also seen what `statistics` and, by channel, `channels` hold.

        Raises:
            CalibrationError: the grid needs a statistic of another kind, or of other units or settings.
            UnsupportedError: the statistic depends on the order of the data.
        """
        watching = copy.copy(self)
        watching.drop_unfinished()
        with torch.inference_mode(mode=False):
            fitting = _fitting(statistics, self._observer)
            observer = self._observer.merge_statistics(fitting)
            extremes = channels.seen.extremes if isinstance(channels, AbsMaxStatistic) else None
            if extremes is not None:
                seen = ChannelRange(extremes.minimum, extremes.maximum)
                watching._own = seen if self.channels is None else self.channels.merge(seen)
                watching._place = None
        watching.batches += 1
        watching._observer = self._observer if self.spans_range else observer
        return watching


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
    raise CalibrationError(Problem(field="statistics", value=found, expected=expected, remedy=remedy))
