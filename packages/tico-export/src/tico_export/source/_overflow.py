"""Weights whose values float32 does not hold."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tico_config import FloatFormat, Found, Problem
from tico_export.source._quantized_weight import QuantizedWeight
from tico_export.source._source import Source

_LARGEST = torch.finfo(torch.float32).max


def overflow_problems(source: Source) -> Iterator[Problem]:
    """Yield the layers of which a code stands for a value beyond float32.

    The integer layer gives the largest number there, and a file, which says code times scale, infinity.
    """
    for path, weight in source.weights.items():
        if bool((weight.scale.double() * _largest_steps(weight) > _LARGEST).any()):
            found, expected = Found("scales beyond that"), "codes that stand for numbers of float32"
            sentence = "some codes of this layer stand for values beyond float32, which no file limits"
            yield Problem(
                module=path or None,
                field="scale",
                value=found,
                expected=expected,
                sentence=sentence,
                remedy="divide the weight by a power of two, and multiply after the layer",
            )


def _largest_steps(weight: QuantizedWeight) -> Tensor | float:
    """Return the largest number that a code of each group stands for, in units of its scale."""
    dtype, zero_point = weight.dtype, weight.zero_point
    if isinstance(dtype, FloatFormat):
        return dtype.encoding.largest
    return torch.maximum(dtype.qmax - zero_point, zero_point - dtype.qmin)
