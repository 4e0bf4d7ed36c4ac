"""Values to codes and back."""

from __future__ import annotations

import torch
from torch import Tensor

from tico_config import DType, Granularity
from tico_observers._affine_params import AffineParams, broadcast, require_fit
from tico_observers._tensor_checks import (
    arithmetic_dtype,
    require_finite,
    require_float_format,
    require_float_tensor,
)


def _grid(
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


def _wide(values: torch.dtype, codes: DType) -> torch.dtype:
    """Return the dtype to compute in: float32 holds every code of up to 16 bits, float64 all others."""
    return torch.float64 if codes.bits > 16 or values == torch.float64 else torch.float32


def _code_dtype(params: AffineParams) -> torch.dtype:
    if params.dtype.bits <= 8:
        return torch.int8 if params.dtype.signed else torch.uint8
    return torch.int16 if params.dtype.signed and params.dtype.bits <= 16 else torch.int32


def quantize(x: Tensor, params: AffineParams) -> Tensor:
    """Return the code of each value: ``clamp(round(x / scale) + zero_point, qmin, qmax)``, halves to even.

    The arithmetic is float32, or float64 for float64 values and 32-bit codes. Codes are int8 or uint8 up to
    8 bits, int16 or int32 above.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor.
        NumericsError: `x` holds NaN or infinity, or its shape does not fit the grid.

    >>> from tico_config import DType
    >>> params = AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(2), dtype=DType.uint(4))
    >>> quantize(torch.tensor([-1.0, 0.0, 0.75, 99.0]), params).tolist()
    [0, 2, 4, 15]
    """
    require_float_tensor(x, "quantize")
    require_fit(params, x.shape)
    require_finite(x, "quantize")
    wide = _wide(arithmetic_dtype(x), params.dtype)
    scale, low, high = _grid(params.scale, params.zero_point, params.dtype, params.granularity, x.shape, wide)
    steps = (x.detach().to(wide) / scale).round_().clamp_(low, high)
    return steps.add_(params.dtype.qmin - low).to(_code_dtype(params))


def dequantize(codes: Tensor, params: AffineParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the value of each code, ``(codes - zero_point) * scale``, computed in float32 or wider.

    A value beyond the finite numbers of `dtype` becomes the largest of them.

    Raises:
        NumericsError: the shape of `codes` does not fit the grid.

    >>> from tico_config import DType
    >>> params = AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(2), dtype=DType.uint(4))
    >>> dequantize(torch.tensor([0, 2, 4, 15]), params).tolist()
    [-1.0, 0.0, 1.0, 6.5]
    """
    require_fit(params, codes.shape, "codes")
    wide = _wide(dtype, params.dtype)
    scale = broadcast(params.scale, params.granularity, codes.shape).to(wide)
    zero_point = broadcast(params.zero_point, params.granularity, codes.shape)
    steps = (codes.to(torch.int64 if params.dtype.bits > 16 else torch.int32) - zero_point).to(wide)
    largest = torch.finfo(dtype).max
    return _narrowed((steps * scale).clamp_(-largest, largest), dtype)


def fake_quantize(x: Tensor, params: AffineParams) -> Tensor:
    """Return each value moved to the nearest one of the grid, in the dtype of `x`.

    The same bits as dequantizing the codes. The gradient passes straight through. NaN stays NaN; infinity
    saturates; a zero is never negative.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor.
        NumericsError: the shape of `x` does not fit the grid.

    >>> from tico_config import DType
    >>> params = AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(0), dtype=DType.int(4))
    >>> fake_quantize(torch.tensor([-9.0, 0.3, 0.75]), params).tolist()
    [-4.0, 0.5, 1.0]
    """
    require_float_format(x, "fake_quantize")
    require_fit(params, x.shape)
    return round_to_grid(
        x, params.scale, params.zero_point, dtype=params.dtype, granularity=params.granularity
    )


def round_to_grid(
    x: Tensor, scale: Tensor, zero_point: Tensor, *, dtype: DType, granularity: Granularity
) -> Tensor:
    """Return `fake_quantize` of `x` for a grid given by its parts, which are not checked.

    For modules that keep `scale` and `zero_point` as buffers and use them in every forward pass.

    >>> from tico_config import DType, PerTensor
    >>> scale, zero_point = torch.tensor(0.5), torch.tensor(0)
    >>> x = torch.tensor([-9.0, 0.3])
    >>> round_to_grid(x, scale, zero_point, dtype=DType.int(4), granularity=PerTensor()).tolist()
    [-4.0, 0.5]
    """
    wide = _wide(arithmetic_dtype(x), dtype)
    scale, low, high = _grid(scale, zero_point, dtype, granularity, x.shape, wide)
    largest = torch.finfo(x.dtype).max
    lowest, highest = ((end * scale).clamp_(-largest, largest) for end in (low, high))
    steps = (x.detach().to(wide) / scale).round_()
    # A scale is positive, so clamping values is clamping steps. Adding the product to 0 removes -0.0.
    values = torch.addcmul(scale.new_zeros(()), steps, scale).clamp_(lowest, highest)
    return with_gradient_of(x, _narrowed(values, x.dtype))


def _narrowed(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Return `values` in `dtype`; those that become zero there are not negative."""
    return values if values.dtype == dtype else values.to(dtype).add_(0.0)


def with_gradient_of(x: Tensor, values: Tensor) -> Tensor:
    """Return `values`, bit for bit, through which the gradient passes to `x` unchanged."""
    if not (x.requires_grad and torch.is_grad_enabled()):
        return values
    # x - x.detach() is exactly 0, except where x is not finite.
    return values + torch.nan_to_num(x - x.detach(), nan=0.0)
