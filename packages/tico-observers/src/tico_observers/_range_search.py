"""Ranges that a histogram determines: between percentiles, of least squared error, of least divergence."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction

import attrs
import torch
from torch import Tensor

from tico_config import DType, EntropySpec, MSESpec, PercentileSpec
from tico_observers._affine_params import AffineParams, params_from_range
from tico_observers._histogram import HistogramStatistic
from tico_observers._powers_of_two import floor_log2, power_of_two
from tico_observers._range import Extremes, seen_extremes

# Elementwise functions over so few elements are one piece of work, whatever the number of threads.
_PIECE = 2**14


def percentile_range(seen: HistogramStatistic, spec: PercentileSpec) -> Extremes:
    """Return the values at the two percentiles of what each unit has seen.

    Of n sorted values, these are the ones at ``floor(lower / 100 * (n - 1))`` and at
    ``ceil(upper / 100 * (n - 1))``, counted from 0. The smallest and the largest are exact, any other is
    rounded to bfloat16 within the range.

    Raises:
        CalibrationError: no data were seen.

    >>> seen = HistogramStatistic().observe(torch.arange(101.0))
    >>> percentile_range(seen, PercentileSpec(0.0, 99.0)).maximum.item()
    99.0
    """
    values, totals = seen.values(), seen.totals()
    # Decimal text makes 99.99 mean that number, not the nearest float.
    lower = _rank(totals, Fraction(repr(spec.lower)), math.floor)
    upper = _rank(totals, Fraction(repr(spec.upper)), math.ceil)
    first = totals.flatten().cumsum(0).view(totals.shape) - totals
    sums = seen.counts.cumsum(0)
    exact = seen_extremes(seen.extremes)

    def value_at(rank: Tensor) -> Tensor:
        value = values[torch.searchsorted(sums, first + rank, right=True)]
        value = torch.where(rank == totals - 1, exact.maximum.double(), value)
        return torch.where(rank == 0, exact.minimum.double(), value)

    minimum, maximum = value_at(lower), value_at(upper)
    # One element is both the first and the last.
    return Extremes(minimum=minimum, maximum=torch.maximum(minimum, maximum))


def _rank(totals: Tensor, percent: Fraction, rounded: Callable[[Fraction], int]) -> Tensor:
    ranks = torch.zeros_like(totals)
    for total in torch.unique(totals).tolist():
        ranks[totals == total] = rounded(percent * (int(total) - 1) / 100)
    return ranks


@attrs.frozen(kw_only=True)
class _Candidate:
    """One shrunken range, its grid, and the code (float64) of each of the histogram's values."""

    extremes: Extremes
    params: AffineParams
    codes: Tensor
    scale: Tensor


def least_error_range(seen: HistogramStatistic, spec: MSESpec, dtype: DType, *, symmetric: bool) -> Extremes:
    """Return the range, among ``i / spec.steps`` of each unit's own, whose grid has the least squared error.

    Of equally good ones, the widest.

    Raises:
        CalibrationError: no data were seen.

    >>> seen = HistogramStatistic().observe(torch.cat([torch.linspace(-1, 1, 9999), torch.tensor([8.0])]))
    >>> least_error_range(seen, MSESpec(), DType.int(4), symmetric=True).maximum.item() < 3
    True
    """
    values, units, weights = seen.values(), seen.units(), seen.counts.double()

    def squared_error(candidate: _Candidate) -> Tensor:
        errors = (candidate.codes * candidate.scale - values).square_().mul_(weights)
        return _unit_sums(errors, units, candidate.params)

    return _best(_candidates(seen, spec.steps, dtype, symmetric=symmetric), squared_error)


def least_divergence_range(
    seen: HistogramStatistic, spec: EntropySpec, dtype: DType, *, symmetric: bool
) -> Extremes:
    """Return the range, among ``i / spec.steps`` of each unit's own, whose grid has the least divergence.

    Kullback-Leibler divergence of P from Q over the bins that occur, zero excepted, which every grid holds:
    P has the counts, those outside the range added to the outermost bin inside; Q has what each code holds of
    the bins inside, spread over these bins in proportion to their width. Of equally good ranges, the widest.
    After Migacz 2017, "8-bit inference with TensorRT".

    Raises:
        CalibrationError: no data were seen.

    >>> seen = HistogramStatistic().observe(torch.linspace(-2, 2, 9999) ** 9)
    >>> least_divergence_range(seen, EntropySpec(), DType.int(8), symmetric=True).maximum.item() < 512
    True
    """
    held = seen.values() != 0
    values, units, counts = (each[held] for each in (seen.values(), seen.units(), seen.counts))
    widths = power_of_two(floor_log2(values))

    def divergence(candidate: _Candidate) -> Tensor:
        low, high = (end.flatten()[units] for end in _ends(candidate.extremes))
        inside = (values >= low) & (values <= high)
        expected = _clipped_counts(counts, units, values, inside, candidate.params)
        offered = _spread_counts(counts, units, candidate.codes[held], torch.where(inside, widths, 0.0))
        ratios = torch.where(expected > 0, expected / offered, 1.0)
        pieces = [ratios[start : start + _PIECE].log() for start in range(0, len(ratios), _PIECE)]
        return _unit_sums(expected * torch.cat([*pieces, ratios[:0]]), units, candidate.params)

    return _best(_candidates(seen, spec.steps, dtype, symmetric=symmetric), divergence)


def _clipped_counts(
    counts: Tensor, units: Tensor, values: Tensor, inside: Tensor, params: AffineParams
) -> Tensor:
    """Return the counts with those outside moved to the unit's nearest bin inside, infinite without one."""
    index = torch.arange(len(counts), device=counts.device)
    size = params.scale.numel()
    first = torch.full((size,), len(counts), device=counts.device).scatter_reduce_(
        0, units[inside], index[inside], "amin"
    )
    last = torch.full((size,), -1, device=counts.device).scatter_reduce_(
        0, units[inside], index[inside], "amax"
    )
    nearest = torch.where(values > 0, last[units], first[units])
    target = torch.where(inside, index, nearest)
    lost = (target < 0) | (target == len(counts))
    moved = torch.zeros_like(counts).index_add_(0, target[~lost], counts[~lost]).double()
    return torch.where(lost, torch.inf, moved)


def _spread_counts(counts: Tensor, units: Tensor, codes: Tensor, widths: Tensor) -> Tensor:
    """Return the counts that share a unit and a code, spread in proportion to `widths`, 0 outside."""
    # Keys ascend by unit, then by value, so bins that share both are neighbours.
    changed = torch.ones_like(units, dtype=torch.bool)
    changed[1:] = (codes[1:] != codes[:-1]) | (units[1:] != units[:-1])
    run = changed.cumsum(0) - 1
    held = torch.zeros_like(counts).index_add_(0, run, counts * (widths > 0))
    width = torch.zeros_like(widths).index_add_(0, run, widths)
    return torch.where(widths > 0, held[run].double() * (widths / width[run]), 0.0)


def _candidates(
    seen: HistogramStatistic, steps: int, dtype: DType, *, symmetric: bool
) -> Iterator[_Candidate]:
    widest = seen_extremes(seen.extremes)
    values, units = seen.values(), seen.units()
    for step in range(steps, 0, -1):
        extremes = Extremes(
            minimum=widest.minimum.double() * (step / steps), maximum=widest.maximum.double() * (step / steps)
        )
        low, high = _ends(extremes)
        params = params_from_range(low, high, dtype, symmetric=symmetric, granularity=seen.granularity)
        scale = params.scale.double().flatten()[units]
        zero_point = params.zero_point.double().flatten()[units]
        codes = (values / scale).round_().clamp_(dtype.qmin - zero_point, dtype.qmax - zero_point)
        yield _Candidate(extremes=extremes, params=params, codes=codes, scale=scale)


def _ends(extremes: Extremes) -> tuple[Tensor, Tensor]:
    return extremes.minimum.clamp(max=0.0), extremes.maximum.clamp(min=0.0)


def _unit_sums(values: Tensor, units: Tensor, params: AffineParams) -> Tensor:
    """Return the sum of `values` of each unit, added in the order of the keys."""
    sums = values.new_zeros(params.scale.numel()).index_add_(0, units, values)
    return sums.view(params.scale.shape)


def _best(candidates: Iterator[_Candidate], cost_of: Callable[[_Candidate], Tensor]) -> Extremes:
    first = next(candidates)
    best, least = first.extremes, cost_of(first)
    for candidate in candidates:
        cost = cost_of(candidate)
        better = cost < least
        least = torch.where(better, cost, least)
        best = Extremes(
            minimum=torch.where(better, candidate.extremes.minimum, best.minimum),
            maximum=torch.where(better, candidate.extremes.maximum, best.maximum),
        )
    return best
