"""The range by channel is a commutative idempotent monoid, bit for bit, and holds the range of the whole."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import PerChannel
from tico_observers import (
    AbsMaxStatistic,
    ChannelRangeReader,
    ChannelRangeStatistic,
    Extremes,
    JoinedRanges,
    RangeStatistic,
    channel_extremes,
    merge_channels,
)


@st.composite
def batches(draw: st.DrawFn) -> Tensor:
    """Return finite tensors of one to three axes, of two to four channels or of one."""
    shape = [*draw(st.lists(st.integers(1, 3), max_size=2)), draw(st.sampled_from([1, 2, 4]))]
    count = torch.Size(shape).numel()
    finite = st.floats(allow_nan=False, allow_infinity=False, width=32)
    numbers = draw(st.lists(finite, min_size=count, max_size=count))
    return torch.tensor(numbers).view(shape)


def _seen(*batches: Tensor, axis: int = -1) -> ChannelRangeStatistic:
    seen = ChannelRangeStatistic(axis=axis)
    for batch in batches:
        seen = seen.observe(batch)
    return seen


def _extremes(x: Tensor) -> Extremes:
    found = channel_extremes(x, -1)
    assert found is not None
    return found


def _same(one: Extremes | None, other: Extremes | None) -> bool:
    assert one is not None
    assert other is not None
    return same_bits(one.minimum, other.minimum) and same_bits(one.maximum, other.maximum)


@given(batches(), batches(), batches())
def test_merging_is_associative(one: Tensor, two: Tensor, three: Tensor) -> None:
    """Any split of the data gives the same, also where batches have channels of different numbers."""
    a, b, c = map(_seen, (one, two, three))
    assert _same(a.merge(b).merge(c).channels, a.merge(b.merge(c)).channels)


@given(batches(), batches())
def test_merging_is_commutative_and_idempotent(one: Tensor, two: Tensor) -> None:
    """Neither order nor repetition matters, not even of zeros of both signs."""
    a, b = _seen(one), _seen(two)
    assert _same(a.merge(b).channels, b.merge(a).channels)
    assert _same(a.merge(b).merge(b).channels, a.merge(b).channels)


@given(batches())
def test_no_data_are_the_identity(x: Tensor) -> None:
    """Neither an empty statistic nor an empty batch changes anything."""
    seen, none = _seen(x), ChannelRangeStatistic()
    assert seen.merge(none) == none.merge(seen) == seen.observe(x[:0]) == seen


@given(batches(), batches())
def test_observing_is_merging(one: Tensor, two: Tensor) -> None:
    """Data seen one after the other are those seen apart and merged."""
    assert _same(_seen(one, two).channels, _seen(one).merge(_seen(two)).channels)


@given(batches(), batches())
def test_range_of_all_channels_is_that_of_the_tensor(one: Tensor, two: Tensor) -> None:
    """What a grid spans is what `RangeStatistic` sees of the whole tensors."""
    assert _same(_seen(one, two).extremes, RangeStatistic().observe(one).observe(two).extremes)


@given(batches(), st.data())
def test_ranges_of_alike_batches_are_those_of_a_range_statistic(x: Tensor, data: st.DataObject) -> None:
    """Where the channels stay as many, `RangeStatistic` per channel has the same."""
    axis = data.draw(st.integers(-x.ndim, x.ndim - 1))
    expected = RangeStatistic(granularity=PerChannel(axis)).observe(x).observe(x / 2)
    assert _same(_seen(x, x / 2, axis=axis).channels, expected.extremes)


@given(batches(), st.integers(-3, 2))
def test_channels_of_any_axis_are_those_moved_to_the_end(x: Tensor, axis: int) -> None:
    """An axis that the tensor has not stands for the last one."""
    at = axis if -x.ndim <= axis < x.ndim else -1
    assert _same(_seen(x.movedim(at, -1)).channels, _seen(x, axis=axis).channels)


@given(batches())
def test_dominance_is_a_share_of_the_largest_magnitude(x: Tensor) -> None:
    """It is from 0 to 1, and unknown for one channel and for zeros; channels of zeros do not count."""
    share = _seen(x).dominance
    magnitudes = AbsMaxStatistic().observe(x).maximum()
    magnitudes = magnitudes[magnitudes > 0]
    assert (share is None) == (x.shape[-1] < 2 or not bool(x.any()))
    assert share is None or share == 1 - magnitudes.median().item() / magnitudes.max().item()
    assert share is None or 0 <= share <= 1


@given(st.lists(st.tuples(batches(), batches()), min_size=1, max_size=4))
def test_joined_ranges_are_merged_as_each_by_itself(pairs: list[tuple[Tensor, Tensor]]) -> None:
    """Merging all at once changes no bit, where every tensor has as many channels as before."""
    # Which of two zeros of different signs is the smaller one is left open until they are widened.
    pairs = [(one + 0.0, two + 0.0) for one, two in pairs]
    firsts = [_extremes(one) for one, _ in pairs]
    seconds = [_extremes(two[..., :1].expand(*two.shape[:-1], one.shape[-1])) for one, two in pairs]
    joined = JoinedRanges.of(firsts).merge(JoinedRanges.of(seconds))
    for index, (first, second) in enumerate(zip(firsts, seconds, strict=True)):
        assert _same(joined[index], merge_channels(first, second))


@given(st.lists(batches(), min_size=1, max_size=4), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_joined_ranges_are_finite_if_all_tensors_are(tensors: list[Tensor], bad: float) -> None:
    """One bad element of one tensor is enough."""
    assert JoinedRanges.of(list(map(_extremes, tensors))).is_finite
    tensors[-1] = torch.full_like(tensors[-1], bad)
    assert not JoinedRanges.of(list(map(_extremes, tensors))).is_finite


@given(batches())
def test_tensor_is_read_again_once_it_was_written_to(x: Tensor) -> None:
    """The same tensor gives the range that was read before; one that has changed gives its new range."""
    reader = ChannelRangeReader()
    before = reader.read(x, -1, "x")
    assert reader.read(x, -1, "x") is before
    x.mul_(0.5).add_(1.0)
    assert _same(reader.read(x, -1, "x"), channel_extremes(x, -1))
