"""Scales of floating-point formats that have the least squared error on a histogram."""

from __future__ import annotations

import attrs
import torch

from tico_config import FloatFormat, MSESpec
from tico_observers._affine_params import AffineParams, params_from_largest
from tico_observers._elements import round_elements
from tico_observers._float_scales import nearby_scales
from tico_observers._histogram import HistogramStatistic
from tico_observers._range import Extremes, require_plausible, seen_extremes


def largest_magnitudes(extremes: Extremes | None) -> torch.Tensor:
    """Return the largest magnitude of each unit, float64, 0 where float32 has no normal number for it.

    Raises:
        CalibrationError: no data were seen.
    """
    seen = require_plausible(seen_extremes(extremes))
    largest = torch.maximum(seen.maximum, -seen.minimum).double()
    return torch.where(largest < torch.finfo(torch.float32).smallest_normal, 0.0, largest)


def least_error_params(seen: HistogramStatistic, spec: MSESpec, dtype: FloatFormat) -> AffineParams:
    """Return the grid, among those of `nearby_scales`, that has the least squared error in each unit.

    Of equally good ones, the widest.

    Raises:
        CalibrationError: no data were seen.

    >>> from tico_config import MXFP4
    >>> seen = HistogramStatistic().observe(torch.tensor([7.9, 7.9, 1.0]))
    >>> least_error_params(seen, MSESpec(), MXFP4()).scale.item()
    2.0
    """
    rule = params_from_largest(largest_magnitudes(seen.extremes), dtype, seen.granularity)
    values, units, weights = seen.values(), seen.units(), seen.counts.double()
    best, least = rule.scale, torch.full(rule.scale.shape, torch.inf, dtype=torch.float64)
    for scale in nearby_scales(rule.scale, dtype, spec.steps, rule.tensor_scale):
        each = scale.double().flatten()[units]
        errors = (round_elements(values / each, dtype.encoding) * each - values).square_().mul_(weights)
        cost = errors.new_zeros(scale.numel()).index_add_(0, units, errors).view(scale.shape)
        better = cost < least
        best, least = torch.where(better, scale, best), torch.minimum(cost, least)
    return attrs.evolve(rule, scale=best)
