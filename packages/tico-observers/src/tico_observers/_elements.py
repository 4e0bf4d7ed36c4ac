"""Floating-point elements as tensors: the nearest one, its code, and the value of a code."""

from __future__ import annotations

import functools
from typing import Final

import torch
from torch import Tensor

from tico_config import Element

# For each arithmetic: integers of its width, the bits of its mantissa, and those of its exponent in place.
_WORDS: Final = {
    torch.float32: (torch.int32, 23, 0xFF << 23, 127),
    torch.float64: (torch.int64, 52, 0x7FF << 52, 1023),
}


def round_elements(x: Tensor, element: Element) -> Tensor:
    """Return the element nearest to each value of `x`, float32 or float64.

    Of two equally near ones it is the one whose code is even. What is beyond the largest one saturates,
    NaN stays NaN, and a zero is never negative.

    >>> from tico_config import MXFP4
    >>> round_elements(torch.tensor([-9.0, 2.4, 2.5, -0.1]), MXFP4().encoding).tolist()
    [-6.0, 2.0, 2.0, 0.0]
    """
    return round_elements_(x.clone(), element)


def round_elements_(x: Tensor, element: Element) -> Tensor:
    """Do what `round_elements` does in the memory of `x`, which is returned."""
    word, mantissa, mask, bias = _WORDS[x.dtype]
    x.clamp_(-element.largest, element.largest)
    # 1.5 * 2**mantissa steps: the sum with it has its last bit where the last bit of the element is.
    lowest = (element.lowest_exponent + bias) << mantissa
    up = ((mantissa - element.mantissa_bits) << mantissa) + (1 << (mantissa - 1))
    anchor = x.view(word).bitwise_and(mask).clamp_min_(lowest).add_(up).view(x.dtype)
    return x.add_(anchor).sub_(anchor)


def encode_elements(values: Tensor, element: Element) -> Tensor:
    """Return the codes, uint8, of `values` that are elements, float32 or float64; zero has the code 0.

    >>> from tico_config import MXFP4
    >>> encode_elements(torch.tensor([-6.0, 0.5, 0.0]), MXFP4().encoding).tolist()
    [15, 1, 0]
    """
    single = values.to(torch.float32)
    if not element.exponent_bits:
        return (single * 2.0**element.mantissa_bits).to(torch.int16).to(torch.uint8)
    size = single.abs()
    shift = 23 - element.mantissa_bits
    normal = (size.view(torch.int32) >> shift) - ((127 - element.bias) << element.mantissa_bits)
    subnormal = (size * (1 / element.smallest)).to(torch.int32)
    code = torch.where(size < 2.0**element.lowest_exponent, subnormal, normal)
    return torch.where(single < 0, code + 2 ** (element.bits - 1), code).to(torch.uint8)


def element_gaps(values: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    """Return how far from `values`, float32 elements, the next element below is, and the next one above.

    Beyond the largest element, and below the smallest, they go on as far apart as before.

    >>> from tico_config import MXFP4
    >>> below, above = element_gaps(torch.tensor([0.0, 2.0, 6.0]), MXFP4().encoding)
    >>> below.tolist(), above.tolist()
    ([0.5, 0.5, 2.0], [0.5, 1.0, 2.0])
    """
    finite = {each for each in element.values if abs(each) <= element.largest}
    known = torch.tensor(sorted(finite), device=values.device)
    gaps = known.diff()
    index = torch.searchsorted(known, values.contiguous())
    last = len(gaps) - 1
    return gaps[(index - 1).clamp(min=0)], gaps[index.clamp(max=last)]


def decode_elements(codes: Tensor, element: Element, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return the values of integer `codes`, which have to be some of the element.

    >>> from tico_config import MXFP4
    >>> decode_elements(torch.tensor([15, 1, 0], dtype=torch.uint8), MXFP4().encoding).tolist()
    [-6.0, 0.5, 0.0]
    """
    flat = codes.reshape(-1).to(torch.int32)
    # A trace has to see the table made.
    values = element_values.__wrapped__ if torch.compiler.is_compiling() else element_values
    return values(element).to(codes.device, dtype).index_select(0, flat).view(codes.shape)


@functools.cache
def element_values(element: Element) -> Tensor:
    """Return the value of each code of `element`, float32; -0 is 0. It is not to be changed.

    >>> from tico_config import MXFP4
    >>> element_values(MXFP4().encoding)[:4].tolist()
    [0.0, 0.5, 1.0, 1.5]
    """
    with torch.inference_mode(mode=False):
        return torch.tensor(element.values) + 0.0
