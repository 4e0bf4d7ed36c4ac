"""The arithmetic of moving values to a grid, and the operator that stands for it in symbolic traces."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.fx import Proxy

from tico_config import DType, FloatFormat, Granularity, NumberFormat, PerTensor
from tico_observers._affine_params import broadcast
from tico_observers._float_grid import call_operator, round_to_elements
from tico_observers._grid_units import granularity_of, settings_of
from tico_observers._tensor_checks import arithmetic_dtype, have_numbers

_ZEROS: Final = {dtype: torch.zeros((), dtype=dtype) for dtype in (torch.float32, torch.float64)}


def grid_in(
    scale: Tensor,
    zero_point: Tensor,
    dtype: DType,
    granularity: Granularity,
    shape: torch.Size,
    wide: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the scale and the smallest and largest whole steps from zero, broadcastable, in `wide`."""
    scale = broadcast(scale, granularity, shape).to(wide)
    zero_point = broadcast(zero_point, granularity, shape).to(wide)
    return scale, dtype.qmin - zero_point, dtype.qmax - zero_point


def wide_dtype(values: torch.dtype, codes: DType) -> torch.dtype:
    """Return the dtype to compute in: float32 holds every code of up to 16 bits, float64 all others."""
    return torch.float64 if codes.bits > 16 or values == torch.float64 else torch.float32


def round_to_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, dtype: NumberFormat, granularity: Granularity
) -> Tensor:
    """Return `fake_quantize` of `x` for a grid given by its parts, which are not checked.

    For modules that keep `scale` and `zero_point` as buffers and use them in every forward pass. In a graph
    that `torch.fx.symbolic_trace` makes it is one call of the operator ``tico::fake_quantize``, or of
    ``tico::fake_quantize_float``.

    >>> from tico_config import DType, PerTensor
    >>> scale, zero_point = torch.tensor(0.5), torch.tensor(0)
    >>> x = torch.tensor([-9.0, 0.3])
    >>> round_to_grid(x, scale, zero_point, dtype=DType.int(4), granularity=PerTensor()).tolist()
    [-4.0, 0.5]
    """
    if isinstance(dtype, FloatFormat):
        if _is_recorded(x):
            return call_operator(x, scale, dtype, granularity)
        return with_gradient_of(x, round_to_elements(x.detach(), scale, dtype, granularity))
    if _is_recorded(x):
        called: Tensor = _operator(x, scale, zero_point, dtype.qmin, dtype.qmax, *settings_of(granularity))
        return called
    return with_gradient_of(x, _rounded(x.detach(), scale, zero_point, dtype, granularity))


def _is_recorded(x: object) -> bool:
    """Tell whether `torch.fx.symbolic_trace` makes a graph of what is called with `x`."""
    return isinstance(x, Proxy)


def _rounded(x: Tensor, scale: Tensor, zero_point: Tensor, dtype: DType, granularity: Granularity) -> Tensor:
    if isinstance(granularity, PerTensor) and have_numbers(x, scale, zero_point):
        values = _on_one_grid(x, float(scale.item()), int(zero_point.item()), dtype)
    else:
        values = _on_grids(x, scale, zero_point, dtype, granularity)
    return narrowed(values, x.dtype)


def _on_one_grid(x: Tensor, scale: float, zero_point: int, dtype: DType) -> Tensor:
    """Return what `_on_grids` does for one grid, by operators in place that each take one pass."""
    low, high = dtype.qmin - zero_point, dtype.qmax - zero_point
    wide = wide_dtype(x.dtype, dtype)
    # A scale is positive, so that clamping steps is clamping values.
    steps = ((x if x.dtype == wide else x.to(wide)) * (1.0 / scale)).round_().clamp_(low, high)
    # 0 + scale * steps: one pass for the product and for removing -0.0, which changes no other bit. Where
    # the steps were: memory that is touched for the first time takes longer than all of this arithmetic.
    values = torch.add(_ZEROS[wide], steps, alpha=scale, out=steps)
    largest = torch.finfo(x.dtype).max
    return values if max(-low, high) * scale <= largest else values.clamp_(-largest, largest)


def _on_grids(x: Tensor, scale: Tensor, zero_point: Tensor, dtype: DType, granularity: Granularity) -> Tensor:
    wide = wide_dtype(arithmetic_dtype(x), dtype)
    scale, low, high = grid_in(scale, zero_point, dtype, granularity, x.shape, wide)
    largest = torch.finfo(x.dtype).max
    lowest, highest = ((end * scale).clamp_(-largest, largest) for end in (low, high))
    steps = (x.to(wide) * scale.reciprocal()).round_()
    return steps.mul_(scale).clamp_min_(lowest).clamp_max_(highest).add_(0.0)


def narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` in `dtype`; those that become zero there are not negative."""
    return values if values.dtype == dtype else values.to(dtype).add_(0.0)


def with_gradient_of(x: Tensor, values: Tensor) -> Tensor:
    """Return `values`, bit for bit, through which derivatives pass to and from `x` unchanged.

    In reverse mode these are gradients, in forward mode tangents.
    """
    if not (x.requires_grad and torch.is_grad_enabled()) and _tangent_of(x) is None:
        return values
    # x - x.detach() is exactly 0, except where x is not finite.
    return values + torch.nan_to_num(x - x.detach(), nan=0.0)


def _tangent_of(x: Tensor) -> Tensor | None:
    tangent: Tensor | None = forward_ad.unpack_dual(x).tangent  # type: ignore[no-untyped-call]  # torch's own
    return tangent


_SCHEMA = (
    "(Tensor x, Tensor scale, Tensor zero_point, int quant_min, int quant_max, str unit, int axis, int size)"
    " -> Tensor"
)


@torch.library.custom_op("tico::fake_quantize", mutates_args=(), schema=_SCHEMA)
def _operator(
    x: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    quant_min: int,
    quant_max: int,
    unit: str,
    axis: int,
    size: int,
) -> Tensor:
    dtype = DType((quant_max - quant_min).bit_length(), signed=quant_min < 0)
    return _rounded(x.detach(), scale, zero_point, dtype, granularity_of(unit, axis, size))


@_operator.register_fake
def _of_its_shape(x: Tensor, *settings: object) -> Tensor:
    return torch.empty_like(x)


def _straight_through(context: object, gradient: Tensor) -> tuple[Tensor | None, ...]:
    return gradient, None, None, None, None, None, None, None


_operator.register_autograd(_straight_through)
