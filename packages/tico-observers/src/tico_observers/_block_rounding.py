"""Blocks of elements in a narrow format, each with the scale of the values that come.

OCP Microscaling Formats (MX) Specification 1.0: element formats in section 5.3, conversion in 6.3.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

from tico_config import CalibrationError, Element, FloatFormat, Found, Problem, UnsupportedError
from tico_observers._elements import round_elements
from tico_observers._float_scales import scales_of, tensor_scale_of
from tico_observers._powers_of_two import floor_log2, power_of_two
from tico_observers._round_to_grid import with_gradient_of
from tico_observers._tensor_checks import require_float_format

_SCALE_EXPONENTS: Final = (-127, 127)


def fake_quantize_blocks(
    x: Tensor, dtype: FloatFormat, axis: int = -1, *, tensor_scale: Tensor | None = None
) -> Tensor:
    """Return each value moved to the nearest one that its block can hold, in the dtype of `x`.

    The scale of a block of an MX format is ``2 ** (floor(log2(largest magnitude)) - highest exponent of the
    format)``, kept within E8M0's 2**-127 to 2**127. That of `NVFP4` is the e4m3 number nearest to
    ``amax / 6`` in units of `tensor_scale`, see `scales_of`; None makes that of the values of `x`. Elements
    round to the nearest, halves to even, and saturate. A block that holds NaN or infinity becomes NaN, as
    E8M0 says. The last block along the axis may be shorter. The gradient passes straight through.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor, or `dtype` has no blocks.
        CalibrationError: `x` has no such axis.

    >>> from tico_config import MXFP4
    >>> fake_quantize_blocks(torch.tensor([7.0, 1.2, -0.3]), MXFP4()).tolist()
    [6.0, 1.0, -0.5]
    """
    require_float_format(x, str(dtype))
    size = require_blocks(dtype)
    if not -x.ndim <= axis < x.ndim:
        found = Found(f"a tensor of shape {tuple(x.shape)}")
        sentence = f"{found} has no axis {axis}"
        raise CalibrationError(
            Problem(field="x", value=found, expected=f"one that has axis {axis}", sentence=sentence)
        )
    if x.numel() == 0:
        return x
    last = x.detach().movedim(axis, -1).to(torch.float64)
    filled = torch.nn.functional.pad(last, (0, -last.shape[-1] % size))
    blocks = filled.reshape(*last.shape[:-1], -1, size)
    if dtype.scale_format == "e8m0":
        rounded = _quantized(blocks, dtype.encoding)
    else:
        rounded = _under_tensor_scale(blocks, dtype, tensor_scale)
    values = rounded.flatten(-2)[..., : last.shape[-1]]
    return with_gradient_of(x, values.movedim(-1, axis).to(x.dtype) + 0.0)


def require_blocks(dtype: FloatFormat) -> int:
    """Return how many values of `dtype` share a scale.

    Raises:
        UnsupportedError: that is not part of the format.

    >>> from tico_config import MXFP4
    >>> require_blocks(MXFP4())
    32
    """
    if dtype.block_size is None:
        expected = "a format of blocks, such as MXFP4()"
        sentence = f"{dtype} has no blocks, which share a scale"
        raise UnsupportedError(Problem(field="dtype", value=dtype, expected=expected, sentence=sentence))
    return dtype.block_size


def _quantized(blocks: Tensor, element: Element) -> Tensor:
    """Return blocks along the last axis as the format holds them; every step on float64 is exact."""
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = (floor_log2(largest) - element.highest_exponent).clamp(*_SCALE_EXPONENTS)
    scaled = blocks * power_of_two(-exponent)
    step = floor_log2(scaled).clamp(element.lowest_exponent, 1023) - element.mantissa_bits
    steps = (scaled * power_of_two(-step)).round_()
    values = (steps * power_of_two(step)).clamp_(-element.largest, element.largest)
    return torch.where(largest.isfinite(), values * power_of_two(exponent), torch.nan)


def _under_tensor_scale(blocks: Tensor, dtype: FloatFormat, tensor_scale: Tensor | None) -> Tensor:
    largest = blocks.abs().amax(-1)
    finite = largest.isfinite()
    known = torch.where(finite, largest, 0.0)
    unit = tensor_scale_of(known) if tensor_scale is None else tensor_scale
    scale = scales_of(known, dtype, unit).to(torch.float64).unsqueeze(-1)
    values = round_elements(blocks / scale, dtype.encoding) * scale
    return torch.where(finite.unsqueeze(-1), values, torch.nan)
