"""Definitions to pin fast paths to, written element by element from what the documentation says."""

from __future__ import annotations

import itertools
import math
import struct
from collections import Counter
from collections.abc import Iterator, Sequence
from fractions import Fraction

import torch
from torch import Tensor

from tico_config import (
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    DType,
    FloatFormat,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
)


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors agree in format, shape, values, and the signs of their zeros."""
    alike = one.dtype == other.dtype and one.shape == other.shape and torch.equal(one, other)
    return alike and torch.equal(one.signbit(), other.signbit())


def units_of(x: Tensor, granularity: Granularity) -> Iterator[list[float]]:
    """Yield the elements of each unit of a granularity, in the order of the flattened scales."""
    groups: dict[tuple[int, ...], list[float]] = {}
    for index in itertools.product(*map(range, x.shape)):
        groups.setdefault(_unit(index, granularity, x.ndim), []).append(x[index].item())
    yield from (groups[unit] for unit in sorted(groups))


def _unit(index: tuple[int, ...], granularity: Granularity, ndim: int) -> tuple[int, ...]:
    match granularity:
        case PerTensor():
            return ()
        case PerChannel(axis=axis):
            return (index[axis],)
        case PerGroup(axis=axis, size=size):
            return tuple(i // size if at == axis % ndim else i for at, i in enumerate(index))
        case PerToken():
            return index[:-1]


def bin_of(value: float) -> int:
    """Return the bin of a finite value: nearest bfloat16, halves to even, signed by its sign."""
    rounded = torch.tensor(abs(value), dtype=torch.float32).item()
    (bits,) = struct.unpack("<I", struct.pack("<f", rounded))
    kept, rest = bits >> 16, bits & 0xFFFF
    kept += rest > 0x8000 or (rest == 0x8000 and kept % 2 == 1)
    return int(math.copysign(min(kept, 0x7F7F), value))


def value_of_bin(number: int) -> float:
    """Return the value that a bin stands for."""
    (magnitude,) = struct.unpack("<f", struct.pack("<I", abs(number) << 16))
    return math.copysign(magnitude, number)


def histogram(values: Sequence[float]) -> dict[int, int]:
    """Return how often each bin occurs."""
    return dict(sorted(Counter(map(bin_of, values)).items()))


def exact_code(value: float, scale: float, zero_point: int, dtype: DType) -> int:
    """Return the code of a value in exact arithmetic."""
    return min(max(round(Fraction(value) / Fraction(scale)) + zero_point, dtype.qmin), dtype.qmax)


def bit_string(codes: Sequence[int], bits: int) -> list[int]:
    """Return codes as the bytes of a little-endian bit string, padded with zeros."""
    whole = sum(code << (bits * index) for index, code in enumerate(codes))
    return list(whole.to_bytes(-(-len(codes) * bits // 8), "little"))


# Smallest and largest exponent, bits after the point, and largest value: MX specification, section 5.3.
MX_ELEMENTS: dict[FloatFormat, tuple[int, int, int, Fraction]] = {
    MXFP8("e4m3"): (-6, 8, 3, Fraction(448)),
    MXFP8("e5m2"): (-14, 15, 2, Fraction(57344)),
    MXFP6("e2m3"): (0, 2, 3, Fraction(15, 2)),
    MXFP6("e3m2"): (-2, 4, 2, Fraction(28)),
    MXFP4(): (0, 2, 1, Fraction(6)),
    MXINT8(): (0, 0, 6, Fraction(127, 64)),
}


def mx_block(values: Sequence[float], element: FloatFormat) -> list[float]:
    """Return the values of one block as Microscaling holds them, in exact arithmetic."""
    lowest, highest, mantissa, largest = MX_ELEMENTS[element]
    top = max(map(abs, values))
    shared = min(max(_floor_log2(Fraction(top)) - highest, -127), 127) if top else -127
    rounded = []
    for value in values:
        scaled = Fraction(value) / Fraction(2) ** shared
        exponent = max(_floor_log2(scaled), lowest) if scaled else lowest
        step = Fraction(2) ** (exponent - mantissa)
        nearest = min(max(round(scaled / step) * step, -largest), largest)
        rounded.append(float(nearest * Fraction(2) ** shared))
    return rounded


def _floor_log2(value: Fraction) -> int:
    magnitude = abs(value)
    guess = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    return guess if Fraction(2) ** guess <= magnitude else guess - 1


def order_statistics(values: Sequence[float], lower: str, upper: str) -> tuple[float, float]:
    """Return the values at two percentiles: ranks rounded outward, values to bfloat16 in the range."""
    ordered = sorted(values)
    last = len(ordered) - 1
    ranks = math.floor(Fraction(lower) * last / 100), math.ceil(Fraction(upper) * last / 100)
    low, high = (_kept(ordered, rank) for rank in ranks)
    return low, high


def _kept(ordered: list[float], rank: int) -> float:
    """Return what the histogram keeps of the value at `rank`: the first and the last exactly."""
    if rank in (0, len(ordered) - 1):
        return ordered[rank]
    return min(max(value_of_bin(bin_of(ordered[rank])), ordered[0]), ordered[-1])
