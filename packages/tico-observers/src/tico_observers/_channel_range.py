"""Ranges by channel, for tensors whose number of channels may change, and tools that make them cheap."""

from __future__ import annotations

import functools
import math
import weakref
from collections.abc import Sequence
from itertools import accumulate
from typing import final

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_observers._range import Extremes
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import require_finite, require_float_tensor

_WIDE = torch.float64
_LARGE = 2**20
_PARTS = 16


def _widen(ranges: Extremes) -> Extremes:
    """Return `ranges` in the dtype of statistics: float64 for float64, else float32; every 0 is positive."""
    wide = _WIDE if ranges.minimum.dtype == _WIDE else torch.float32
    # Adding 0.0 turns -0.0 into 0.0, so that the bits do not depend on which zero came first.
    return Extremes(minimum=ranges.minimum.to(wide) + 0.0, maximum=ranges.maximum.to(wide) + 0.0)


@final
@attrs.frozen(kw_only=True)
class ChannelRangeStatistic(Statistic):
    """The range seen of each channel along `axis`: commutative, associative and idempotent, bit for bit.

    It takes any floating-point tensor, where a `RangeStatistic` per channel refuses another number of
    channels. Batches that differ in it, such as attention weights over sequences of several lengths, have no
    channels in common: they are merged into the range of all, as one channel. A tensor without such an axis
    has its channels along the last one, a scalar is one channel.

    `channels` holds two vectors of shape (channels,), float64 for data of float64 and float32 for all others;
    it is None before any data.

    >>> seen = ChannelRangeStatistic().observe(torch.tensor([[1.0, -4.0], [-3.0, 2.0]]))
    >>> seen.channels.minimum.tolist(), seen.channels.maximum.tolist()
    ([-3.0, -4.0], [1.0, 2.0])
    >>> seen.observe(torch.tensor([[7.0]])).channels.maximum.tolist()
    [7.0]
    """

    __hash__ = None  # type: ignore[assignment]

    axis: int = -1
    channels: Extremes | None = attrs.field(default=None, converter=attrs.converters.optional(_widen))

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.channels is None

    def observe(self, x: Tensor) -> Self:
        """Return the ranges of everything seen so far and `x`; an empty `x` changes nothing."""
        with torch.inference_mode(mode=False):
            require_float_tensor(x, "range")
            require_finite(x, "range")
            seen = channel_extremes(x.detach(), self.axis)
            return self if seen is None else self.merge(attrs.evolve(self, channels=seen))

    def merge(self, other: Self) -> Self:
        """Return the ranges of everything that both have seen."""
        require_same("axis", self.axis, other.axis)
        if self.channels is None or other.channels is None:
            return other if self.channels is None else self
        return attrs.evolve(self, channels=merge_channels(self.channels, other.channels))

    @property
    def extremes(self) -> Extremes | None:
        """The smallest and the largest value of all channels, two scalars; None before any data."""
        if self.channels is None:
            return None
        return Extremes(minimum=self.channels.minimum.amin(), maximum=self.channels.maximum.amax())

    @property
    def dominance(self) -> float | None:
        """The share of the range, 0 to 1, that the channel with the largest magnitude has to itself.

        That is ``1 - typical / largest`` of the channels' largest magnitudes, where the median is typical:
        at 0.99 half of the channels fill at most a hundredth of a grid that spans all of them. Channels that
        are always 0 lose nothing on any grid, and do not count. None for one channel, for zeros, and before
        any data.
        """
        if self.channels is None or self.channels.minimum.numel() < 2:
            return None
        magnitudes = torch.maximum(self.channels.maximum, -self.channels.minimum)
        used = magnitudes[magnitudes > 0]
        return 1.0 - used.median().item() / used.amax().item() if used.numel() else None


def channel_extremes(x: Tensor, axis: int) -> Extremes | None:
    """Return the range of each channel along `axis` of `x`: two vectors of shape (channels,), in its dtype.

    Nothing is checked: where `x` holds NaN or infinity, so does the result. None where `x` has no element.

    >>> channel_extremes(torch.tensor([[1.0, 5.0], [2.0, -5.0]]), axis=-1).minimum.tolist()
    [1.0, -5.0]
    """
    if x.numel() == 0:
        return None
    others = _other_axes(x.ndim, axis)
    if x.numel() >= _LARGE and others == tuple(range(x.ndim - 1)) and x.is_contiguous():
        return _of_large_rows(x.view(-1, x.shape[-1]))
    # Two reductions over the outer axes take less time than one `aminmax` of the whole tensor.
    if not others:
        x = x.reshape(1, -1)
        others = (0,)
    return Extremes(minimum=x.amin(others), maximum=x.amax(others))


def _of_large_rows(x: Tensor) -> Extremes:
    """Return the range of each column of the contiguous `x` (rows, columns), read in the order of its memory.

    A reduction over the rows of more than a cache holds goes through memory column by column. Comparing a few
    long parts of it value by value first takes down to a fifth of the time.
    """
    rows, columns = x.shape
    whole = rows - rows % _PARTS
    parts = x[:whole].view(_PARTS, -1)
    rest = x[whole:]
    low = torch.cat((parts.amin(0).view(-1, columns), rest)).amin(0)
    return Extremes(minimum=low, maximum=torch.cat((parts.amax(0).view(-1, columns), rest)).amax(0))


@functools.lru_cache(maxsize=64)
def _other_axes(ndim: int, axis: int) -> tuple[int, ...]:
    at = axis if -ndim <= axis < ndim else -1
    return tuple(other for other in range(ndim) if other != at % ndim)


def merge_channels(one: Extremes, other: Extremes) -> Extremes:
    """Return the range of each channel in both; of all, as one channel, if they differ in their number."""
    if one.minimum.shape != other.minimum.shape:
        one, other = _as_one_channel(one), _as_one_channel(other)
    return one.merge(other)


def _as_one_channel(ranges: Extremes) -> Extremes:
    return Extremes(minimum=ranges.minimum.amin().view(1), maximum=ranges.maximum.amax().view(1))


@final
class ChannelRangeReader:
    """Reads the ranges of tensors by channel, each tensor once, however often it is asked for.

    Made for tensors that pass many points, some of them unchanged from one to the next. A tensor that was
    written to since is read again.

    >>> reader, x = ChannelRangeReader(), torch.tensor([1.0, 2.0])
    >>> reader.read(x, -1, "act_in") is reader.read(x, -1, "act_out")
    True
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, int], tuple[weakref.ref[Tensor], int, Extremes | None]] = {}

    def read(self, x: Tensor, axis: int, name: str) -> Extremes | None:
        """Return the range of each channel of `x`, as `channel_extremes` does.

        Raises:
            UnsupportedError: `x` is not a dense floating-point tensor; the error calls it `name`.
        """
        found = self._known.get((id(x), axis))
        if found is not None and found[0]() is x and found[1] == x._version:
            return found[2]
        require_float_tensor(x, name)
        seen = channel_extremes(x.detach() if x.requires_grad else x, axis)
        if not x.is_inference():  # such a tensor does not tell that it was written to
            self._known[id(x), axis] = (weakref.ref(x), x._version, seen)
        return seen

    def forget(self) -> None:
        """Forget every tensor."""
        self._known.clear()


@final
@attrs.frozen(eq=False)
class JoinedRanges:
    """The ranges of several tensors by channel, one after the other: all of them are merged at once.

    `joined` holds two vectors of shape (sum of `sizes`,), where `sizes` are the channels of each tensor.

    >>> low, high = torch.tensor([-1.0]), torch.tensor([2.0])
    >>> joined = JoinedRanges.of([Extremes(minimum=low, maximum=high), Extremes(minimum=low, maximum=-low)])
    >>> joined.merge(joined)[1].maximum.tolist()
    [1.0]
    """

    joined: Extremes
    sizes: tuple[int, ...]
    _starts: tuple[int, ...]

    @classmethod
    def of(cls, ranges: Sequence[Extremes]) -> Self:
        """Return at least one range, each two vectors, on one device and of one dtype, as one."""
        low, high = [each.minimum for each in ranges], [each.maximum for each in ranges]
        sizes = tuple(each.numel() for each in low)
        starts = tuple(accumulate(sizes[:-1], initial=0))
        return cls(Extremes(minimum=torch.cat(low), maximum=torch.cat(high)), sizes, starts)

    def merge(self, other: JoinedRanges) -> JoinedRanges:
        """Return the ranges of each tensor in both.

        Raises:
            CalibrationError: the two are of other numbers of channels.
        """
        require_same("sizes", self.sizes, other.sizes)
        return attrs.evolve(self, joined=self.joined.merge(other.joined))

    @property
    def is_finite(self) -> bool:
        """Whether no channel of any tensor holds NaN or infinity."""
        low, high = self.joined.minimum.amin().item(), self.joined.maximum.amax().item()
        return math.isfinite(low) and math.isfinite(high)

    def __getitem__(self, index: int) -> Extremes:
        """Return the range of each channel of the tensor at `index`."""
        place = (0, self._starts[index], self.sizes[index])
        low, high = self.joined.minimum, self.joined.maximum
        return Extremes(minimum=low.narrow(*place), maximum=high.narrow(*place))
