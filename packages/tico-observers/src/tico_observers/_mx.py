"""Microscaling: blocks of 32 elements in a narrow format that share a power of two.

OCP Microscaling Formats (MX) Specification v1.0: element formats in section 5.3, conversion in 6.3.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, MXFormat, MXSpec, Problem
from tico_observers._powers_of_two import floor_log2, power_of_two
from tico_observers._round_to_grid import with_gradient_of
from tico_observers._tensor_checks import require_float_format

BLOCK: Final = 32
_SCALE_EXPONENTS: Final = (-127, 127)


@attrs.frozen
class _Element:
    """A format: bits after the point, exponents from `lowest` to `highest`, and the largest value."""

    mantissa: int
    lowest: int
    highest: int
    largest: float


_ELEMENTS: Final = {
    MXFormat.MXFP8_E4M3: _Element(3, -6, 8, 448.0),
    MXFormat.MXFP8_E5M2: _Element(2, -14, 15, 57344.0),
    MXFormat.MXFP6_E2M3: _Element(3, 0, 2, 7.5),
    MXFormat.MXFP6_E3M2: _Element(2, -2, 4, 28.0),
    MXFormat.MXFP4_E2M1: _Element(1, 0, 2, 6.0),
    MXFormat.MXINT8: _Element(6, 0, 0, 127 / 64),
}


def fake_quantize_mx(x: Tensor, spec: MXSpec) -> Tensor:
    """Return each value moved to the nearest one that its block can hold, in the dtype of `x`.

    The scale of a block is ``2 ** (floor(log2(largest magnitude)) - highest exponent of the format)``, kept
    within E8M0's 2**-127 to 2**127. Elements round to the nearest, halves to even, and saturate. A block that
    holds NaN or infinity becomes NaN, as E8M0 says. The last block along the axis may be shorter. The
    gradient passes straight through.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor.
        CalibrationError: `x` has no such axis.

    >>> fake_quantize_mx(torch.tensor([7.0, 1.2, -0.3]), MXSpec(MXFormat.MXFP4_E2M1)).tolist()
    [6.0, 1.0, -0.5]
    """
    require_float_format(x, "MX")
    if not -x.ndim <= spec.axis < x.ndim:
        found = Found(f"a tensor of shape {tuple(x.shape)}")
        sentence = f"{found} has no axis {spec.axis}"
        raise CalibrationError(
            Problem(field="x", value=found, expected=f"one that has axis {spec.axis}", sentence=sentence)
        )
    if x.numel() == 0:
        return x
    last = x.detach().movedim(spec.axis, -1).to(torch.float64)
    filled = torch.nn.functional.pad(last, (0, -last.shape[-1] % BLOCK))
    blocks = filled.reshape(*last.shape[:-1], -1, BLOCK)
    values = _quantized(blocks, _ELEMENTS[spec.format]).flatten(-2)[..., : last.shape[-1]]
    return with_gradient_of(x, values.movedim(-1, spec.axis).to(x.dtype) + 0.0)


def _quantized(blocks: Tensor, element: _Element) -> Tensor:
    """Return blocks along the last axis as the format holds them; every step on float64 is exact."""
    largest = blocks.abs().amax(-1, keepdim=True)
    exponent = (floor_log2(largest) - element.highest).clamp(*_SCALE_EXPONENTS)
    scaled = blocks * power_of_two(-exponent)
    step = floor_log2(scaled).clamp(element.lowest, 1023) - element.mantissa
    steps = (scaled * power_of_two(-step)).round_()
    values = (steps * power_of_two(step)).clamp_(-element.largest, element.largest)
    return torch.where(largest.isfinite(), values * power_of_two(exponent), torch.nan)
