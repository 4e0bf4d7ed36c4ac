"""Values to codes and back."""

from __future__ import annotations

import torch
from torch import Tensor

from tico_config import FloatFormat, Found, NumberFormat, NumericsError, Problem
from tico_observers._affine_params import AffineParams, broadcast, require_fit
from tico_observers._elements import decode_elements, element_values, encode_elements
from tico_observers._float_grid import element_steps
from tico_observers._round_to_grid import narrowed, round_to_grid, wide_dtype
from tico_observers._tensor_checks import (
    arithmetic_dtype,
    require_finite,
    require_float_format,
    require_float_kind,
    require_float_tensor,
    require_integers,
)


def _code_dtype(params: AffineParams) -> torch.dtype:
    if params.dtype.bits <= 8:
        return torch.int8 if params.dtype.signed else torch.uint8
    return torch.int16 if params.dtype.signed and params.dtype.bits <= 16 else torch.int32


def quantize(x: Tensor, params: AffineParams) -> Tensor:
    """Return the code of each value: ``clamp(round(x * (1 / scale)) + zero_point, qmin, qmax)``.

    Halves are rounded to even, and the reciprocal is rounded before the product, as in torch's own operators.
    The arithmetic is float32, or float64 for float64 values and 32-bit codes. Codes are int8 or uint8 up to
    8 bits, int16 or int32 above.

    For a `FloatFormat` it is the code, uint8, of the element nearest to ``x / scale``; what is beyond the
    largest element saturates.

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
    if isinstance(params.dtype, FloatFormat):
        steps = element_steps(x, params.scale, params.dtype, params.granularity)
        return encode_elements(steps, params.dtype.encoding)
    wide, codes = wide_dtype(arithmetic_dtype(x), params.dtype), _code_dtype(params)
    scale, zero_point = (
        broadcast(each, params.granularity, x.shape).to(wide) for each in (params.scale, params.zero_point)
    )
    steps = (x.detach().to(wide) * scale.reciprocal()).round_()
    # Where the sum is not exact, it is far beyond the codes and clamped.
    steps.add_(zero_point).clamp_(params.dtype.qmin, params.dtype.qmax)
    # To int16 and on to uint8 takes a quarter of the time of one step.
    return steps.to(torch.int16).to(codes) if codes is torch.uint8 else steps.to(codes)


def dequantize(codes: Tensor, params: AffineParams, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the value of each code, ``(codes - zero_point) * scale``, computed in float32 or wider.

    For a `FloatFormat` it is ``element(code) * scale``.

    A value beyond the finite numbers of `dtype` becomes the largest of them.

    Raises:
        UnsupportedError: `codes` are no integers, or `dtype` is no floating-point format.
        NumericsError: a code is none of the grid's format, or stands for infinity or NaN, or the shape does
            not fit the grid.

    >>> from tico_config import DType
    >>> params = AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(2), dtype=DType.uint(4))
    >>> dequantize(torch.tensor([0, 2, 4, 15]), params).tolist()
    [-1.0, 0.0, 1.0, 6.5]
    """
    _require_codes(codes, params.dtype)
    require_fit(params, codes.shape, "codes")
    require_float_kind(dtype, "dequantize")
    form, largest = params.dtype, torch.finfo(dtype).max
    if isinstance(form, FloatFormat):
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        scale = broadcast(params.scale, params.granularity, codes.shape).to(wide)
        values = decode_elements(codes, form.encoding, wide)
        return narrowed((values * scale).clamp_(-largest, largest), dtype)
    wide = wide_dtype(dtype, form)
    scale = broadcast(params.scale, params.granularity, codes.shape).to(wide)
    zero_point = broadcast(params.zero_point, params.granularity, codes.shape)
    steps = (codes.to(torch.int64 if form.bits > 16 else torch.int32) - zero_point).to(wide)
    return narrowed((steps * scale).clamp_(-largest, largest), dtype)


def _require_codes(codes: Tensor, dtype: NumberFormat) -> None:
    """Refuse what is no code of `dtype`."""
    require_integers(codes, "codes", "dequantize")
    low, high = (int(end) for end in torch.aminmax(codes)) if codes.numel() else (dtype.qmin, dtype.qmin)
    if low < dtype.qmin or high > dtype.qmax:
        found, span = Found(f"{low} to {high}"), f"from {dtype.qmin} to {dtype.qmax}"
        sentence = f"the codes go from {low} to {high}, and those of {dtype} {span}"
        raise NumericsError(Problem(field="codes", value=found, expected=span, sentence=sentence))
    if isinstance(dtype, FloatFormat):
        require_numbers(codes, dtype)


def require_numbers(codes: Tensor, dtype: FloatFormat) -> None:
    """Refuse codes that stand for infinity or NaN.

    Raises:
        NumericsError: with the first of them.
    """
    if not dtype.encoding.has_nan:
        return
    finite = element_values(dtype.encoding).isfinite().to(codes.device)
    wrong = codes.flatten()[~finite[codes.flatten().to(torch.int32)]]
    if len(wrong):
        found, expected = Found(f"{int(wrong[0]):#04x}"), "codes of finite numbers"
        sentence = f"the code {found} of {dtype} stands for infinity or NaN"
        raise NumericsError(Problem(field="codes", value=found, expected=expected, sentence=sentence))


def fake_quantize(x: Tensor, params: AffineParams) -> Tensor:
    """Return each value moved to the nearest one of the grid, integer or `FloatFormat`, in the dtype of `x`.

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
