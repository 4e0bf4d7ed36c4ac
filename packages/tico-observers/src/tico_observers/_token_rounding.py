"""Values moved to a grid of their own token, in one go."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from tico_config import DType, FloatFormat, NumberFormat, PerToken
from tico_observers._float_grid import round_to_elements
from tico_observers._float_scales import scales_of
from tico_observers._round_to_grid import narrowed, wide_dtype, with_gradient_of
from tico_observers._tensor_checks import arithmetic_dtype, have_numbers

_TINY: Final = torch.finfo(torch.float32).tiny
_BELOW_TINY: Final = math.nextafter(_TINY, 0.0)


def can_round_tokens(x: object, dtype: NumberFormat, *, symmetric: bool) -> bool:
    """Tell whether `round_tokens` can be called: the numbers of `x` can be read, and there are some."""
    return isinstance(x, Tensor) and have_numbers(x) and x.numel() > 0 and (dtype.signed or not symmetric)


def round_tokens(x: Tensor, dtype: NumberFormat, *, symmetric: bool) -> Tensor:
    """Return `x` with each vector along its last axis on the min/max grid of its values.

    The same bits as `fake_quantize` with `params_per_token`, in half as many operators: for a few tokens
    it is their number that takes the time. A vector that holds NaN or infinity becomes NaN.

    >>> round_tokens(torch.tensor([[-1.0, 0.7, 3.0]]), DType.uint(2), symmetric=False).tolist()
    [[-1.3333333730697632, 1.3333333730697632, 2.6666667461395264]]
    """
    if isinstance(dtype, FloatFormat):
        return with_gradient_of(x, _to_elements(x.detach(), dtype))
    return with_gradient_of(x, _rounded(x.detach(), dtype, symmetric))


def _to_elements(x: Tensor, dtype: FloatFormat) -> Tensor:
    largest = x.abs().amax(-1).to(torch.float64) if x.shape[-1] else x.new_zeros(x.shape[:-1])
    scale = scales_of(torch.threshold(largest, _BELOW_TINY, 0.0), dtype)
    values = round_to_elements(x, scale, dtype, PerToken())
    return torch.where(largest.isfinite().unsqueeze(-1), values, torch.nan)


def _rounded(x: Tensor, dtype: DType, symmetric: bool) -> Tensor:
    scale, bounds = _grids(x, dtype, symmetric, wide_dtype(arithmetic_dtype(x), dtype))
    steps = (x.to(scale.dtype) * scale.reciprocal()).round_()
    values = steps.mul_(scale).clamp_min_(bounds[..., :1]).clamp_max_(bounds[..., 1:]).add_(0.0)
    return narrowed(values, x.dtype)


def _grids(x: Tensor, dtype: DType, symmetric: bool, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the scale (…, 1) of each vector, and the ends of its grid (…, 2), in `wide`."""
    levels = dtype.qmax - dtype.qmin
    # How far each vector reaches below and above 0: (…, 2). What is smaller than a normal float32 is none.
    ends = torch.cat((x.amin(-1, keepdim=True).neg(), x.amax(-1, keepdim=True)), -1).to(torch.float64)
    ends = torch.threshold_(ends, _BELOW_TINY, 0.0)
    if symmetric:
        width = (ends / ends.new_tensor([-dtype.qmin, dtype.qmax])).amax(-1, keepdim=True)
    else:
        width = ends.sum(-1, keepdim=True).div_(levels)
    single = torch.threshold_(width, 0.0, 1.0).clamp_(min=_TINY).to(torch.float32)
    scale = single if wide == torch.float32 else single.to(wide)
    if symmetric:
        whole = scale.new_tensor([dtype.qmin, dtype.qmax]) * scale
    else:
        below = (ends[..., :1] / single).round_().clamp_(max=levels).to(wide)
        whole = (scale.new_tensor([0, levels]) - below).mul_(scale)
    largest = torch.finfo(x.dtype).max
    return scale, whole.clamp_(-largest, largest)
