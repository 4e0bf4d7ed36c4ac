"""Scales of floating-point formats: how they follow from ranges, and what they are stored as.

OCP Microscaling Formats 1.0, section 6.3, for powers of two; NVIDIA 2025, arXiv 2509.25149, section 2 and
appendix C, for e4m3 scales under a scale of the tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from tico_config import FP8, FloatFormat
from tico_observers._elements import decode_elements, encode_elements, round_elements
from tico_observers._powers_of_two import floor_log2, power_of_two

_SCALES: Final = FP8("e4m3").encoding
_SMALLEST: Final = torch.finfo(torch.float32).smallest_normal
_E8M0: Final = 127
"""What is added to the exponent of a power of two to make its code."""

_STEPS_UP: Final = 2
_STEPS_DOWN: Final = 4
"""How many neighbouring e4m3 scales a search tries; lower ones are hardly ever the best."""


def tensor_scale_of(largest: Tensor) -> Tensor:
    """Return the scale of a tensor whose largest magnitudes are `largest`, float32 of shape ().

    The block that has the largest one then gets the largest scale: ``amax / (6 * 448)``. It is 1 for a tensor
    of zeros, and large enough for all e4m3 multiples to be normal float32 numbers.

    >>> tensor_scale_of(torch.tensor([2688.0, 1.0])).item()
    1.0
    """
    wide = largest.detach().to(torch.float64).amax() / (6 * _SCALES.largest)
    scale = torch.where(wide == 0, 1.0, wide).clamp(min=_SMALLEST / _SCALES.smallest)
    return scale.to(torch.float32)


def scales_of(largest: Tensor, dtype: FloatFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return the float32 scale of each unit whose largest magnitude is `largest`, by the rule of `dtype`.

    - ``float32``: ``amax / largest element``;
    - ``e8m0``: 2 to the power of ``floor(log2(amax)) - highest exponent of an element``, a normal float32;
    - ``e4m3``: ``amax / 6`` in units of `tensor_scale` rounded to the nearest e4m3 number that is not 0.

    A unit of zeros has the scale 1; with `tensor_scale`, this.

    >>> from tico_config import MXFP4
    >>> scales_of(torch.tensor([6.0, 7.9, 8.0, 0.0]), MXFP4()).tolist()
    [1.0, 1.0, 2.0, 1.0]
    """
    wide, element = largest.detach().to(torch.float64), dtype.encoding
    match dtype.scale_format:
        case "float32":
            scale = torch.where(wide == 0, 1.0, wide / element.largest)
        case "e8m0":
            exponent = (floor_log2(wide) - element.highest_exponent).clamp(-126, _E8M0)
            scale = torch.where(wide == 0, 1.0, power_of_two(exponent))
            scale = torch.where(wide.isfinite(), scale, torch.inf)
        case "e4m3":
            unit = _required(tensor_scale)
            ratio = round_elements(wide / (element.largest * unit.to(torch.float64)), _SCALES)
            ratio = torch.where(wide == 0, 1.0, ratio.clamp(min=_SCALES.smallest))
            ratio = torch.where(wide.isfinite(), ratio, torch.inf)
            return ratio.to(torch.float32) * unit
    return scale.clamp(min=_SMALLEST).to(torch.float32)


def encode_scales(scale: Tensor, dtype: FloatFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return `scale`, positive and float32, as `dtype` stores it: float32, or codes of 8 bits.

    A scale that the format does not have becomes one near it.

    >>> from tico_config import MXFP4
    >>> encode_scales(torch.tensor([1.0, 0.5]), MXFP4()).tolist()
    [127, 126]
    """
    match dtype.scale_format:
        case "float32":
            return scale
        case "e8m0":
            return (floor_log2(scale) + _E8M0).to(torch.uint8)
        case "e4m3":
            ratio = round_elements(scale / _required(tensor_scale), _SCALES)
            return encode_elements(ratio, _SCALES)


def decode_scales(stored: Tensor, dtype: FloatFormat, tensor_scale: Tensor | None = None) -> Tensor:
    """Return the float32 scales that `encode_scales` gave `stored` for.

    >>> from tico_config import MXFP4
    >>> decode_scales(torch.tensor([127, 126], dtype=torch.uint8), MXFP4()).tolist()
    [1.0, 0.5]
    """
    match dtype.scale_format:
        case "float32":
            return stored
        case "e8m0":
            return (stored.to(torch.int32) << 23).view(torch.float32)
        case "e4m3":
            return decode_elements(stored, _SCALES) * _required(tensor_scale)


def nearby_scales(
    scale: Tensor, dtype: FloatFormat, steps: int, tensor_scale: Tensor | None = None
) -> Iterator[Tensor]:
    """Yield `scale` and others for a search, as tensors of its shape, the largest first.

    Float32 scales are ``i / steps`` of `scale`, powers of two the one above and the one below, and e4m3
    scales two above and four below.

    >>> from tico_config import MXFP4
    >>> [each.item() for each in nearby_scales(torch.tensor(1.0), MXFP4(), steps=1)]
    [2.0, 1.0, 0.5]
    """
    match dtype.scale_format:
        case "float32":
            for step in range(steps, 0, -1):
                yield (scale * (step / steps)).clamp(min=_SMALLEST)
        case "e8m0":
            code = encode_scales(scale, dtype).to(torch.int32)
            for step in (1, 0, -1):
                yield decode_scales((code + step).clamp(1, 254), dtype)
        case "e4m3":
            code = encode_scales(scale, dtype, tensor_scale).to(torch.int32)
            last = int(encode_elements(torch.tensor(_SCALES.largest), _SCALES))
            for step in range(_STEPS_UP, -_STEPS_DOWN - 1, -1):
                yield decode_scales((code + step).clamp(1, last), dtype, tensor_scale)


def _required(tensor_scale: Tensor | None) -> Tensor:
    if tensor_scale is None:
        raise TypeError("scales in e4m3 need the scale of the tensor")
    return tensor_scale
