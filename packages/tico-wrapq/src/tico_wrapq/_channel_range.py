"""The range of each channel of a point, from which the range of the whole follows for free."""

from __future__ import annotations

import functools
import math
import weakref
from typing import final

import attrs
import torch
from torch import Tensor

from tico_config import PerChannel
from tico_observers import AbsMaxStatistic, Extremes, RangeStatistic, require_float_tensor


@attrs.frozen(eq=False)
class ChannelRange:
    """Smallest and largest value of each channel, two vectors; one element where no channels are told apart.

    Commutative, associative and idempotent, bit for bit. Tensors with another number of channels, such as
    attention weights over sequences of several lengths, have no channels in common: their ranges are merged.
    """

    low: Tensor
    high: Tensor

    @classmethod
    def of(cls, x: Tensor, axis: int) -> ChannelRange | None:
        """Return the range of the channels along `axis` of `x`, unchecked; None without an element."""
        if x.numel() == 0:
            return None
        others = _others(x.ndim, axis)
        # Two reductions over the outer axes take less time than one `aminmax` of the whole tensor.
        if not others:
            x = x.reshape(1, -1)
            others = (0,)
        return cls(x.amin(others), x.amax(others))

    def merge(self, other: ChannelRange) -> ChannelRange:
        """Return the range of both."""
        one = self
        if one.low.shape != other.low.shape:
            one, other = one.whole(), other.whole()
        return ChannelRange(torch.minimum(one.low, other.low), torch.maximum(one.high, other.high))

    def whole(self) -> ChannelRange:
        """Return the range of all channels together, as one channel."""
        return ChannelRange(self.low.amin().view(1), self.high.amax().view(1))

    @property
    def is_finite(self) -> bool:
        """Whether no channel holds NaN or infinity."""
        return math.isfinite(self.low.amin().item()) and math.isfinite(self.high.amax().item())

    def exact(self) -> Extremes:
        """Return the range of each channel in the dtype of statistics."""
        wide = torch.float64 if self.low.dtype == torch.float64 else torch.float32
        # Adding 0.0 turns -0.0 into 0.0, so that the bits do not depend on which zero came first.
        return Extremes(minimum=self.low.to(wide) + 0.0, maximum=self.high.to(wide) + 0.0)

    def extremes(self) -> Extremes:
        """Return the smallest and the largest value of all."""
        each = self.exact()
        return Extremes(minimum=each.minimum.amin(), maximum=each.maximum.amax())

    def taken_by_one(self) -> float | None:
        """Return the share of the range, 0 to 1, that the largest channel has to itself.

        That is ``1 - typical / largest`` of the channels' largest magnitudes, where the median is typical:
        at 0.99 half of the channels fill at most a hundredth of the grid. None where channels are not told
        apart.
        """
        if self.low.numel() < 2:
            return None
        magnitudes = torch.maximum(self.high, -self.low)
        largest = magnitudes.amax().item()
        return 1.0 - magnitudes.median().item() / largest if largest else None

    def statistic(self) -> AbsMaxStatistic:
        """Return the range as the statistic that files hold."""
        axis = PerChannel(axis=-1)
        return AbsMaxStatistic(granularity=axis, seen=RangeStatistic(granularity=axis, extremes=self.exact()))


@functools.lru_cache(maxsize=64)
def _others(ndim: int, axis: int) -> tuple[int, ...]:
    at = axis if -ndim <= axis < ndim else -1
    return tuple(other for other in range(ndim) if other != at % ndim)


@final
class JoinedRanges:
    """The ranges of several points one after the other, as if they were one: all are merged at once."""

    def __init__(self, channels: ChannelRange) -> None:
        self.channels = channels

    @staticmethod
    def of(ranges: list[ChannelRange]) -> ChannelRange | None:
        """Return `ranges` as one; None where there is none, or where they differ in dtype or device."""
        if len({(each.low.dtype, each.low.device) for each in ranges}) != 1:
            return None
        low, high = [each.low for each in ranges], [each.high for each in ranges]
        return ChannelRange(torch.cat(low), torch.cat(high))


@attrs.frozen(eq=False)
class Stretch:
    """Where the channels of one point are among those of others."""

    joined: JoinedRanges
    start: int
    size: int

    @property
    def channels(self) -> ChannelRange:
        """The range of each channel of the point."""
        both = self.joined.channels
        low, high = (each.narrow(0, self.start, self.size) for each in (both.low, both.high))
        return ChannelRange(low, high)


@final
class KnownRanges:
    """The ranges of the tensors of a forward pass, each read once, however many points it goes through."""

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[Tensor], int, ChannelRange | None]] = {}

    def of(self, x: Tensor, axis: int, name: str) -> ChannelRange | None:
        """Return the range of the channels along `axis` of `x`; None without an element.

        Raises:
            UnsupportedError: `x` is not a dense floating-point tensor; the error calls it `name`.
        """
        found = self._known.get((id(x), axis))
        if found is not None and found[0]() is x and found[1] == x._version:
            return found[2]
        require_float_tensor(x, name)
        seen = ChannelRange.of(x.detach() if x.requires_grad else x, axis)
        if not x.is_inference():  # such a tensor does not tell that it was written to
            self._known[id(x), axis] = (weakref.ref(x), x._version, seen)
        return seen

    def forget(self) -> None:
        """Forget every tensor."""
        self._known.clear()
