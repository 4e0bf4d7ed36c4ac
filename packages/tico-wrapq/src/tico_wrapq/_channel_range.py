"""The range of each channel of a point, from which the range of the whole follows for free."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import PerChannel
from tico_observers import AbsMaxStatistic, Extremes, RangeStatistic


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
        others = tuple(range(x.ndim - 1)) if axis == -1 else _others(x.ndim, axis)
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
        magnitudes = torch.maximum(self.high, -self.low)
        if magnitudes.numel() < 2 or not bool(magnitudes.any()):
            return None
        return 1.0 - float(magnitudes.median()) / float(magnitudes.amax())

    def statistic(self) -> AbsMaxStatistic:
        """Return the range as the statistic that files hold."""
        axis = PerChannel(axis=-1)
        return AbsMaxStatistic(granularity=axis, seen=RangeStatistic(granularity=axis, extremes=self.exact()))


def _others(ndim: int, axis: int) -> tuple[int, ...]:
    at = axis if -ndim <= axis < ndim else -1
    return tuple(other for other in range(ndim) if other != at % ndim)
