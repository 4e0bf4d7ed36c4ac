"""What a quantized cache keeps, group by group, from all the floats that it was ever given."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from tico_config import FP8, DType, FloatFormat, PerGroup, PerToken, QuantSpec, integer_format
from tico_modules import LayerCache

TOKENS, CHANNELS = -2, -1


def kept(x: Tensor, layer: LayerCache, part: str) -> Tensor:
    """Return what attention reads of all keys or values `x` (batch, heads, tokens, channels) of a layer."""
    spec = layer.key if part == "key" else layer.value
    fixed = layer.key_scale if part == "key" else layer.value_scale
    zero = layer.key_zero_point if part == "key" else layer.value_zero_point
    result = x.clone()
    if not spec.is_quantized:
        return result
    together = group_of(spec)[0]
    coded = max(x.shape[TOKENS] - layer.config.residual_length, 0) // together * together
    if fixed is not None and zero is not None:
        scale, offset = fixed, zero
        old = x[:, :, :coded].float()
        if isinstance(spec.dtype, FloatFormat):
            result[:, :, :coded] = (elements(old / scale, spec.dtype) * scale).to(x.dtype)
            return result
        steps = (torch.round(old * (1 / scale)) + offset).clamp(spec.dtype.qmin, spec.dtype.qmax)
        result[:, :, :coded] = ((steps - offset) * scale).to(x.dtype)
        return result
    tokens, channels = group_of(spec)
    for sample, head in itertools.product(range(x.shape[0]), range(x.shape[1])):
        for first in range(0, coded, tokens):
            for left in range(0, x.shape[CHANNELS], channels):
                place = (sample, head, slice(first, first + tokens), slice(left, left + channels))
                result[place] = on_own_grid(x[place], spec).to(x.dtype)
    return result


def group_of(spec: QuantSpec) -> tuple[int, int]:
    """Return how many tokens and channels share a grid that comes from the data."""
    match spec.granularity:
        case PerToken():
            return 1, 2**20
        case PerGroup(axis=axis, size=size) if axis == TOKENS:
            return size, 1
        case PerGroup(size=size):
            return 1, size
        case _:
            return 1, 1


def on_own_grid(x: Tensor, spec: QuantSpec) -> Tensor:
    """Return `x` on the min/max grid of all its values, with a scale of bfloat16 that is no smaller."""
    values = x.float()
    if isinstance(spec.dtype, FloatFormat):
        largest = float(values.abs().max()) / spec.dtype.encoding.largest
        scale = next_bfloat16(float(torch.tensor(largest or 1.0, dtype=torch.float64).float()))
        return elements(values / scale, spec.dtype) * scale
    dtype = integer_format(spec.dtype)
    scale = next_bfloat16(exact_scale(float(values.min()), float(values.max()), dtype, spec.is_symmetric))
    low = min(float(values.min()), 0.0)
    zero = 0 if spec.is_symmetric else dtype.qmin - round(float(torch.tensor(low) / scale))
    steps = (torch.round(values * (1 / torch.tensor(scale))) + zero).clamp(dtype.qmin, dtype.qmax)
    return (steps - zero) * scale


def elements(x: Tensor, dtype: FloatFormat) -> Tensor:
    """Return the nearest elements of FP8 by torch's own casts, which do not saturate."""
    largest = dtype.encoding.largest
    kind = torch.float8_e4m3fn if dtype == FP8("e4m3") else torch.float8_e5m2
    return x.clamp(-largest, largest).to(kind).float()


def exact_scale(low: float, high: float, dtype: DType, symmetric: bool) -> float:
    """Return the smallest float32 scale for values from `low` to `high`; 1 where all are 0."""
    low, high = min(low, 0.0), max(high, 0.0)
    exact = (
        max(high / dtype.qmax, low / dtype.qmin) if symmetric else (high - low) / (dtype.qmax - dtype.qmin)
    )
    return float(torch.tensor(exact or 1.0, dtype=torch.float64).float())


def next_bfloat16(scale: float) -> float:
    """Return the smallest number of bfloat16 that is no smaller than `scale`."""
    near = torch.tensor(scale).bfloat16()
    if float(near) < scale:
        near = (near.view(torch.int16) + 1).view(torch.bfloat16)
    return float(near)
