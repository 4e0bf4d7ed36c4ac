"""The range by channel is a commutative idempotent monoid, bit for bit, and holds the range of the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_observers import RangeStatistic
from tico_wrapq._channel_range import ChannelRange


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """Return finite tensors of one to three axes, of two to four channels or of one."""
    shape = [*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.sampled_from([1, 2, 4]))]
    count = torch.Size(shape).numel()
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    numbers = draw(st.lists(finite, min_size=count, max_size=count))
    return torch.tensor(numbers).view(shape)


def _range(x: Tensor) -> ChannelRange:
    found = ChannelRange.of(x, -1)
    assert found is not None
    return found


def _same(one: ChannelRange, other: ChannelRange) -> bool:
    mine, theirs = one.exact(), other.exact()
    return same_bits(mine.minimum, theirs.minimum) and same_bits(mine.maximum, theirs.maximum)


@given(batches(), batches(), batches())
def test_merging_is_associative(one: Tensor, two: Tensor, three: Tensor) -> None:
    """Any split of the data gives the same, also where batches have channels of different numbers."""
    a, b, c = map(_range, (one, two, three))
    assert _same(a.merge(b).merge(c), a.merge(b.merge(c)))


@given(batches(), batches())
def test_merging_is_commutative_and_idempotent(one: Tensor, two: Tensor) -> None:
    """Neither order nor repetition matters, not even of zeros of both signs."""
    a, b = _range(one), _range(two)
    assert _same(a.merge(b), b.merge(a))
    assert _same(a.merge(b).merge(b), a.merge(b))


@given(batches(), batches())
def test_range_of_all_channels_is_that_of_the_tensor(one: Tensor, two: Tensor) -> None:
    """What the grid spans is what `RangeStatistic` sees of the whole tensors."""
    expected = RangeStatistic().observe(one).observe(two).extremes
    found = _range(one).merge(_range(two)).extremes()
    assert expected is not None
    assert same_bits(found.minimum, expected.minimum)
    assert same_bits(found.maximum, expected.maximum)


@given(batches(), st.integers(-3, 2))
def test_channels_of_any_axis_are_those_moved_to_the_end(x: Tensor, axis: int) -> None:
    """An axis that the tensor has not stands for the last one."""
    at = axis if -x.ndim <= axis < x.ndim else -1
    expected, found = ChannelRange.of(x.movedim(at, -1), -1), ChannelRange.of(x, axis)
    assert expected is not None
    assert found is not None
    assert _same(found, expected)


@given(batches())
def test_share_taken_by_one_channel_is_a_share(x: Tensor) -> None:
    """It is from 0 to 1, unknown for one channel, and unchanged by a power of two."""
    share = _range(x).taken_by_one()
    assert (share is None) == (x.shape[-1] < 2 or not bool(x.any()))
    assert share is None or 0 <= share <= 1
