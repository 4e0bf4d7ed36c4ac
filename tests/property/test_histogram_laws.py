"""Histogram: a commutative monoid of exact counts, bit for bit."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import bin_of, histogram, units_of, value_of_bin
from tico_config import Granularity, PerChannel, PerTensor
from tico_observers import HistogramStatistic, _bins
from tico_observers.testing import granularities, layouts, partitions, tensors

matrices = tensors(shape=(4, 3))
grids = granularities(2)
row_free = st.sampled_from([PerTensor(), PerChannel(1), PerChannel(-1)])


def histogram_of(x: Tensor, granularity: Granularity) -> HistogramStatistic:
    """Return the histogram of one tensor."""
    return HistogramStatistic(granularity=granularity).observe(x)


def bins_by_unit(seen: HistogramStatistic) -> list[dict[int, int]]:
    """Return the counts by bin, for each unit."""
    found: dict[int, dict[int, int]] = {}
    for key, count in zip(seen.keys.tolist(), seen.counts.tolist(), strict=True):
        found.setdefault(key // _bins.BINS, {})[key % _bins.BINS - _bins.OFFSET] = count
    return [found[unit] for unit in sorted(found)]


@given(matrices, grids)
def test_histogram_is_its_definition(x: Tensor, granularity: Granularity) -> None:
    """Every element is counted at the nearest bfloat16 of its unit."""
    expected = [histogram(unit) for unit in units_of(x, granularity)]
    assert bins_by_unit(histogram_of(x, granularity)) == expected


@given(matrices, matrices, grids)
def test_histogram_merge_is_commutative(a: Tensor, b: Tensor, granularity: Granularity) -> None:
    """A + b = b + a."""
    one, other = histogram_of(a, granularity), histogram_of(b, granularity)
    assert one.merge(other) == other.merge(one)


@given(matrices, matrices, matrices, grids)
def test_histogram_merge_is_associative(a: Tensor, b: Tensor, c: Tensor, granularity: Granularity) -> None:
    """(a + b) + c = a + (b + c)."""
    x, y, z = (histogram_of(each, granularity) for each in (a, b, c))
    assert x.merge(y).merge(z) == x.merge(y.merge(z))


@given(matrices, grids)
def test_histogram_merge_has_an_identity(x: Tensor, granularity: Granularity) -> None:
    """0 + a = a = a + 0."""
    empty, seen = HistogramStatistic(granularity=granularity), histogram_of(x, granularity)
    assert empty.merge(seen) == seen == seen.merge(empty)


@given(matrices, grids)
def test_histogram_merge_adds_counts(x: Tensor, granularity: Granularity) -> None:
    """A + a has every count twice."""
    seen = histogram_of(x, granularity)
    assert torch.equal(seen.merge(seen).counts, 2 * seen.counts)


@given(st.data(), matrices, row_free)
def test_histogram_of_parts_is_histogram_of_the_whole(data: st.DataObject, x: Tensor, g: Granularity) -> None:
    """The split into batches does not matter."""
    seen = HistogramStatistic(granularity=g)
    for part in data.draw(partitions(x)):
        seen = seen.observe(part)
    assert seen == histogram_of(x, g)


@given(st.data(), matrices, grids)
def test_histogram_does_not_depend_on_the_layout(data: st.DataObject, x: Tensor, g: Granularity) -> None:
    """Strides, offsets and expansion do not matter."""
    assert histogram_of(data.draw(layouts(x)), g) == histogram_of(x, g)


@given(matrices, row_free, st.permutations(range(4)))
def test_histogram_does_not_depend_on_the_order_of_rows(x: Tensor, g: Granularity, order: list[int]) -> None:
    """The order of the data does not matter."""
    assert histogram_of(x[order], g) == histogram_of(x, g)


@given(matrices, grids)
def test_histogram_counts_every_element_once(x: Tensor, granularity: Granularity) -> None:
    """The counts of a unit sum to its number of elements."""
    expected = [len(unit) for unit in units_of(x, granularity)]
    assert histogram_of(x, granularity).totals().flatten().tolist() == expected


@given(matrices, matrices, grids)
def test_histogram_paths_agree(a: Tensor, b: Tensor, granularity: Granularity) -> None:
    """Counting and adding by sorted keys gives what dense tables give."""
    dense = histogram_of(a, granularity).observe(b)
    with mock.patch.object(_bins, "_DENSE_LIMIT", 0):
        assert histogram_of(a, granularity).observe(b) == dense


@given(matrices)
def test_histogram_values_are_near_the_elements(x: Tensor) -> None:
    """A normal value differs from its bin's by at most 1/256 of it."""
    normal = x[x.abs() >= torch.finfo(torch.float32).smallest_normal].double()
    bins = torch.tensor([bin_of(value) for value in normal.tolist()])
    errors = (_bins.bin_values(bins) - normal).abs()
    assert bool((errors <= normal.abs() / 256).all())


@given(matrices)
def test_histogram_of_the_negative_is_mirrored(x: Tensor) -> None:
    """count(-x, -b) = count(x, b)."""
    (mine,), (mirrored,) = (bins_by_unit(histogram_of(each, PerTensor())) for each in (x, -x))
    assert mirrored == {-number: count for number, count in mine.items()}


@given(st.integers(-0x7F7F, 0x7F7F))
def test_a_bfloat16_is_its_own_bin(number: int) -> None:
    """bin(value(b)) = b, so that bfloat16 data are counted exactly."""
    value = value_of_bin(number)
    (found,) = bins_by_unit(histogram_of(torch.tensor(value, dtype=torch.bfloat16), PerTensor()))
    assert found == {number: 1}
    assert _bins.bin_values(torch.tensor(number)).item() == value


@given(st.integers(-0x7F7F, 0x7F7E))
def test_bins_are_ordered_like_values(number: int) -> None:
    """value(b) < value(b + 1)."""
    assert value_of_bin(number) < value_of_bin(number + 1)


@given(matrices, st.lists(st.sampled_from([torch.nan, torch.inf]), min_size=1, max_size=4), row_free)
def test_ignored_values_are_in_no_bin(x: Tensor, bad: list[float], granularity: Granularity) -> None:
    """Ignoring what is not finite gives the histogram of the rest, and says how much was left out."""
    rows = torch.tensor(bad, dtype=x.dtype)[:, None].expand(len(bad), 3)
    empty = HistogramStatistic(granularity=granularity, on_nonfinite="ignore")
    seen = empty.observe(torch.cat([x, rows]))
    assert bins_by_unit(seen) == bins_by_unit(histogram_of(x, granularity))
    assert seen.dropped == 3 * len(bad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_nearer_to_infinity_are_in_the_last_bin(dtype: torch.dtype) -> None:
    """The largest float32 is nearer to infinity than to any bfloat16: the largest one counts it."""
    largest = torch.finfo(torch.float32).max
    seen = histogram_of(torch.tensor([largest, -largest], dtype=dtype), PerTensor())
    (found,) = bins_by_unit(seen)
    assert found == {-0x7F7F: 1, 0x7F7F: 1}
