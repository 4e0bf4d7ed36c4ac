"""From float weights to codes: the grid of a range, and rounding to nearest on a grid."""

from __future__ import annotations

import torch
from torch import Tensor

from tico_config import PerChannel, PerGroup
from tico_modules._storage.weight_format import WeightFormat
from tico_observers import AffineParams, RangeStatistic, params_from_range, quantize


def choose_params(weight: Tensor, form: WeightFormat, *, symmetric: bool) -> AffineParams:
    """Return the min/max grid of each row of `weight`, seen as a matrix, or of each group of a row.

    A weight without elements has scales of 1.

    Raises:
        NumericsError: the weight holds NaN or infinity.
    """
    size = form.group_size
    unit = PerChannel(0) if size is None else PerGroup(axis=1, size=size)
    seen = RangeStatistic(granularity=unit).observe(weight.detach().flatten(1)).extremes
    if seen is not None:
        return params_from_range(
            seen.minimum, seen.maximum, form.dtype, symmetric=symmetric, granularity=unit
        )
    scale = torch.ones((form.rows,) if size is None else (form.rows, form.groups), device=weight.device)
    zero_point = torch.zeros_like(scale, dtype=torch.int32)
    return AffineParams(scale=scale, zero_point=zero_point, dtype=form.dtype, granularity=unit)


def round_to_params(weight: Tensor, params: AffineParams) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes (rows, columns), scale and zero point (rows, groups) of `weight`, seen as a matrix.

    `params` is a grid of that matrix: per tensor, per channel of axis 0, or per group of axis 1.

    Raises:
        NumericsError: the weight holds NaN or infinity, or the grid does not fit it.
    """
    matrix = weight.detach().flatten(1)
    codes = quantize(matrix, params)
    scale, zero_point = params.scale, params.zero_point
    if scale.ndim < 2:
        scale = scale.reshape(-1, 1).expand(len(matrix), 1)
        zero_point = zero_point.reshape(-1, 1).expand(len(matrix), 1)
    return codes, scale, zero_point
