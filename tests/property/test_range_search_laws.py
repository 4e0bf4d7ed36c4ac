"""Ranges that a histogram determines, each pinned to a search by brute force."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import Tensor

from references import bin_of, histogram, order_statistics, units_of, value_of_bin
from tico_config import DType, EntropySpec, Granularity, MSESpec, PercentileSpec, PerChannel, PerTensor
from tico_observers import (
    AffineParams,
    Extremes,
    HistogramStatistic,
    fake_quantize,
    least_divergence_range,
    least_error_range,
    params_from_range,
    percentile_range,
    quantize,
)
from tico_observers.testing import granularities, integer_dtypes, tensors

matrices = tensors(shape=(4, 3), dtype=torch.float32)
lists = tensors(shape=(12,), dtype=torch.float32, largest=2.0**40)
narrow = integer_dtypes(max_bits=4)
percents = st.integers(0, 10_000).map(lambda n: n / 100)


def seen_of(x: Tensor, granularity: Granularity | None = None) -> HistogramStatistic:
    """Return the histogram of one tensor."""
    return HistogramStatistic(granularity=granularity or PerTensor()).observe(x)


def shrunken_grid(x: Tensor, share: float, dtype: DType) -> AffineParams:
    """Return the grid of a share of the range of `x`."""
    low, high = (end.double() * share for end in torch.aminmax(x))
    return params_from_range(low, high, dtype, symmetric=dtype.signed, granularity=PerTensor())


def binned(x: Tensor) -> Tensor:
    """Return the values that the histogram keeps of `x`."""
    kept = torch.tensor([value_of_bin(bin_of(value)) for value in x.tolist()], dtype=torch.float64)
    return kept.clamp(x.min().double(), x.max().double())


def squared_error(x: Tensor, params: AffineParams) -> float:
    """Return the squared error of what the histogram keeps of `x`."""
    return math.fsum((fake_quantize(binned(x), params) - binned(x)).square().tolist())


def divergence(x: Tensor, share: float, dtype: DType) -> float:
    """Return the divergence of the clipped counts from the counts that a grid keeps."""
    low, high = (float(end) * share for end in torch.aminmax(x))
    low, high = min(low, 0.0), max(high, 0.0)
    counts = {
        min(max(value_of_bin(number), float(x.min())), float(x.max())): count
        for number, count in histogram(x.tolist()).items()
        if number
    }
    inside = [value for value in counts if low <= value <= high]
    clipped = dict.fromkeys(inside, 0)
    for value, count in counts.items():
        if value not in clipped and not inside:
            return math.inf
        nearest = value if value in clipped else (max(inside) if value > 0 else min(inside))
        clipped[nearest] += count
    params = shrunken_grid(x, share, dtype)
    wide = torch.tensor(inside, dtype=torch.float64)
    codes = dict(zip(inside, map(int, quantize(wide, params).tolist()), strict=True))
    return math.fsum(_terms(counts, clipped, codes))


def _terms(counts: dict[float, int], clipped: dict[float, int], codes: dict[float, int]) -> list[float]:
    widths = {value: 2.0 ** math.floor(math.log2(abs(value))) for value in codes}
    terms = []
    for value, code in codes.items():
        alike = [other for other in codes if codes[other] == code]
        held = sum(counts[other] for other in alike)
        offered = held * widths[value] / math.fsum(widths[other] for other in alike)
        terms.append(clipped[value] * math.log(clipped[value] / offered))
    return terms


def share_of(found: Extremes, x: Tensor) -> float:
    """Return which share of the range of `x` was found."""
    low, high = (float(end) for end in torch.aminmax(x))
    return float(found.maximum) / high if abs(high) >= abs(low) else float(found.minimum) / low


@given(matrices, granularities(2), percents, percents)
def test_percentiles_are_their_definition(x: Tensor, granularity: Granularity, a: float, b: float) -> None:
    """The values at the ranks, rounded outward, of what each unit has seen."""
    assume(a != b)
    lower, upper = sorted((a, b))
    found = percentile_range(seen_of(x, granularity), PercentileSpec(lower, upper))
    pairs = list(zip(found.minimum.flatten().tolist(), found.maximum.flatten().tolist(), strict=True))
    assert pairs == [order_statistics(unit, repr(lower), repr(upper)) for unit in units_of(x, granularity)]


@given(matrices, granularities(2))
def test_percentiles_0_and_100_are_the_exact_range(x: Tensor, granularity: Granularity) -> None:
    """Nothing is lost at the ends."""
    seen = seen_of(x, granularity)
    found = percentile_range(seen, PercentileSpec(0.0, 100.0))
    assert seen.extremes is not None
    assert torch.equal(found.minimum, seen.extremes.minimum.double())
    assert torch.equal(found.maximum, seen.extremes.maximum.double())


@given(matrices, percents, percents)
def test_percentiles_are_monotone(x: Tensor, a: float, b: float) -> None:
    """A higher percentile is not below a lower one."""
    low, high = sorted((max(a, 0.01), max(b, 0.01)))
    seen = seen_of(x)
    ends = [percentile_range(seen, PercentileSpec(0.0, upper)).maximum for upper in (low, high)]
    assert ends[0] <= ends[1]


@given(matrices, percents)
def test_percentiles_do_not_depend_on_repetition(x: Tensor, upper: float) -> None:
    """Data seen twice have percentiles inside the same range, and the same extremes."""
    assume(upper > 0)
    seen = seen_of(x)
    once, twice = (percentile_range(each, PercentileSpec(0.0, upper)) for each in (seen, seen.merge(seen)))
    assert torch.equal(once.minimum, twice.minimum)
    assert twice.maximum <= once.maximum


@given(lists, narrow, st.integers(1, 8))
def test_least_error_is_found_by_brute_force(x: Tensor, dtype: DType, steps: int) -> None:
    """No share of the range has a smaller squared error than the one found."""
    found = least_error_range(seen_of(x), MSESpec(steps), dtype, symmetric=dtype.signed)
    chosen = params_from_range(
        found.minimum, found.maximum, dtype, symmetric=dtype.signed, granularity=PerTensor()
    )
    errors = [squared_error(x, shrunken_grid(x, step / steps, dtype)) for step in range(1, steps + 1)]
    assert squared_error(x, chosen) == pytest.approx(min(errors), rel=1e-9, abs=0.0)


@given(lists, narrow)
def test_one_step_is_the_whole_range(x: Tensor, dtype: DType) -> None:
    """With a single candidate, both searches give the exact range."""
    seen = seen_of(x)
    for found in (
        least_error_range(seen, MSESpec(1), dtype, symmetric=dtype.signed),
        least_divergence_range(seen, EntropySpec(1), dtype, symmetric=dtype.signed),
    ):
        assert (found.minimum.item(), found.maximum.item()) == (x.min().item(), x.max().item())


@given(tensors(shape=(12,), dtype=torch.float32, largest=2.0**20), narrow, st.integers(-10, 10))
def test_least_error_is_equivariant_under_powers_of_two(x: Tensor, dtype: DType, power: int) -> None:
    """range(2^k * x) = 2^k * range(x), away from the smallest numbers."""
    assume(bool(((x == 0) | (x.abs() > 2.0**-80)).all()))
    one, other = (
        least_error_range(seen_of(each), MSESpec(5), dtype, symmetric=dtype.signed)
        for each in (x, x * 2.0**power)
    )
    assert torch.equal(other.maximum, one.maximum * 2.0**power)
    assert torch.equal(other.minimum, one.minimum * 2.0**power)


@given(tensors(shape=(6, 2), dtype=torch.float32, largest=2.0**40), narrow)
def test_units_are_searched_alone(x: Tensor, dtype: DType) -> None:
    """A channel's range is that of a tensor that holds it alone, for both searches."""
    both = seen_of(x, PerChannel(1))
    error = least_error_range(both, MSESpec(2), dtype, symmetric=dtype.signed)
    entropy = least_divergence_range(both, EntropySpec(2), dtype, symmetric=dtype.signed)
    for channel in range(2):
        alone = seen_of(x[:, channel])
        expected = least_error_range(alone, MSESpec(2), dtype, symmetric=dtype.signed)
        assert torch.equal(error.maximum[channel], expected.maximum)
        expected = least_divergence_range(alone, EntropySpec(2), dtype, symmetric=dtype.signed)
        assert torch.equal(entropy.maximum[channel], expected.maximum)


@given(tensors(shape=(12,), dtype=torch.float32, largest=2.0**10), narrow, st.integers(1, 6))
def test_least_divergence_is_found_by_brute_force(x: Tensor, dtype: DType, steps: int) -> None:
    """No share of the range has a smaller divergence than the one found."""
    assume(bool((x.abs() > 2.0**-60).any()))
    found = least_divergence_range(seen_of(x), EntropySpec(steps), dtype, symmetric=dtype.signed)
    chosen = round(share_of(found, x) * steps) / steps
    costs = {step / steps: divergence(x, step / steps, dtype) for step in range(1, steps + 1)}
    assert costs[chosen] == pytest.approx(min(costs.values()), rel=1e-9, abs=1e-9)
