"""Range and largest magnitude: commutative, idempotent monoids, bit for bit."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits, units_of
from tico_config import Granularity, PerChannel, PerTensor
from tico_observers import AbsMaxStatistic, Extremes, RangeStatistic
from tico_observers.testing import granularities, layouts, partitions, tensors

matrices = tensors(shape=(4, 3))
grids = granularities(2)
row_free = st.sampled_from([PerTensor(), PerChannel(1), PerChannel(-1)])


def range_of(x: Tensor, granularity: Granularity) -> RangeStatistic:
    """Return the range of one tensor."""
    return RangeStatistic(granularity=granularity).observe(x)


def known(statistic: RangeStatistic) -> Extremes:
    """Return the extremes of a statistic that has seen data."""
    assert statistic.extremes is not None
    return statistic.extremes


def same(one: RangeStatistic, other: RangeStatistic) -> bool:
    """Tell whether two ranges are the same bit for bit."""
    pairs = (
        (known(one).minimum, known(other).minimum),
        (known(one).maximum, known(other).maximum),
    )
    return all(same_bits(mine, theirs) for mine, theirs in pairs)


@given(matrices, grids)
def test_range_is_its_definition(x: Tensor, granularity: Granularity) -> None:
    """The range of a unit is the smallest and the largest of its elements."""
    extremes = known(range_of(x, granularity))
    units = list(units_of(x, granularity))
    assert extremes.minimum.flatten().tolist() == [min(unit) for unit in units]
    assert extremes.maximum.flatten().tolist() == [max(unit) for unit in units]


@given(matrices, matrices, grids)
def test_range_merge_is_commutative(a: Tensor, b: Tensor, granularity: Granularity) -> None:
    """A + b = b + a."""
    one, other = range_of(a, granularity), range_of(b, granularity)
    assert same(one.merge(other), other.merge(one))


@given(matrices, matrices, matrices, grids)
def test_range_merge_is_associative(a: Tensor, b: Tensor, c: Tensor, granularity: Granularity) -> None:
    """(a + b) + c = a + (b + c)."""
    x, y, z = (range_of(each, granularity) for each in (a, b, c))
    assert same(x.merge(y).merge(z), x.merge(y.merge(z)))


@given(matrices, grids)
def test_range_merge_has_an_identity(x: Tensor, granularity: Granularity) -> None:
    """0 + a = a = a + 0."""
    empty, seen = RangeStatistic(granularity=granularity), range_of(x, granularity)
    assert same(empty.merge(seen), seen)
    assert same(seen.merge(empty), seen)


@given(matrices, grids)
def test_range_merge_is_idempotent(x: Tensor, granularity: Granularity) -> None:
    """A + a = a."""
    seen = range_of(x, granularity)
    assert same(seen.merge(seen), seen)


@given(matrices, matrices, grids)
def test_range_observe_is_merge_with_the_range_of_the_batch(a: Tensor, b: Tensor, g: Granularity) -> None:
    """observe(observe(0, a), b) = observe(0, a) + observe(0, b)."""
    assert same(range_of(a, g).observe(b), range_of(a, g).merge(range_of(b, g)))


@given(st.data(), matrices, row_free)
def test_range_of_parts_is_range_of_the_whole(data: st.DataObject, x: Tensor, g: Granularity) -> None:
    """The split into batches does not matter."""
    seen = RangeStatistic(granularity=g)
    for part in data.draw(partitions(x)):
        seen = seen.observe(part)
    assert same(seen, range_of(x, g))


@given(st.data(), matrices, grids)
def test_range_does_not_depend_on_the_layout(
    data: st.DataObject, x: Tensor, granularity: Granularity
) -> None:
    """Strides, offsets and expansion do not matter."""
    assert same(range_of(data.draw(layouts(x)), granularity), range_of(x, granularity))


@given(matrices, row_free, st.permutations(range(4)))
def test_range_does_not_depend_on_the_order_of_rows(x: Tensor, g: Granularity, order: list[int]) -> None:
    """The order of the data does not matter."""
    assert same(range_of(x[order], g), range_of(x, g))


@given(matrices, matrices, grids)
def test_range_grows_with_the_data(a: Tensor, b: Tensor, granularity: Granularity) -> None:
    """The range of more data contains the range of less."""
    less, more = known(range_of(a, granularity)), known(range_of(a, granularity).observe(b))
    assert bool((more.minimum <= less.minimum).all())
    assert bool((more.maximum >= less.maximum).all())


@given(matrices, grids)
def test_range_of_the_negative_is_mirrored(x: Tensor, granularity: Granularity) -> None:
    """min(-x) = -max(x)."""
    seen, mirrored = known(range_of(x, granularity)), known(range_of(-x, granularity))
    assert torch.equal(mirrored.minimum, -seen.maximum)
    assert torch.equal(mirrored.maximum, -seen.minimum)


@given(matrices, grids)
def test_range_has_no_negative_zero(x: Tensor, granularity: Granularity) -> None:
    """Which zero came first does not show in the bits."""
    extremes = known(range_of(x, granularity))
    for end in (extremes.minimum, extremes.maximum):
        assert not bool((end.signbit() & (end == 0)).any())


@given(
    tensors(shape=(4, 3)), st.lists(st.sampled_from([torch.nan, torch.inf, -torch.inf]), max_size=4), row_free
)
def test_ignored_values_change_only_their_count(
    x: Tensor, bad: list[float], granularity: Granularity
) -> None:
    """Ignoring what is not finite gives the range of the rest, and says how much was left out."""
    rows = torch.tensor(bad, dtype=x.dtype)[:, None].expand(len(bad), 3)
    seen = RangeStatistic(granularity=granularity, on_nonfinite="ignore").observe(torch.cat([x, rows]))
    assert same(seen, range_of(x, granularity))
    assert seen.dropped == 3 * len(bad)


@given(matrices, grids)
def test_absmax_is_its_definition(x: Tensor, granularity: Granularity) -> None:
    """The largest magnitude of a unit is that of its elements."""
    maximum = AbsMaxStatistic(granularity=granularity).observe(x).maximum()
    assert maximum.flatten().tolist() == [max(map(abs, unit)) for unit in units_of(x, granularity)]


@given(matrices, matrices)
def test_absmax_merge_is_commutative(a: Tensor, b: Tensor) -> None:
    """A + b = b + a."""
    one, other = AbsMaxStatistic().observe(a), AbsMaxStatistic().observe(b)
    assert one.merge(other) == other.merge(one)


@given(st.data(), matrices)
def test_absmax_of_parts_is_absmax_of_the_whole(data: st.DataObject, x: Tensor) -> None:
    """The split into batches does not matter."""
    seen = AbsMaxStatistic()
    for part in data.draw(partitions(x)):
        seen = seen.observe(part)
    assert seen == AbsMaxStatistic().observe(x)


@given(matrices)
def test_absmax_does_not_depend_on_signs(x: Tensor) -> None:
    """absmax(-x) = absmax(x) = absmax(abs(x))."""
    values = {tuple(AbsMaxStatistic().observe(each).maximum().tolist()) for each in (x, -x, x.abs())}
    assert len(values) == 1
