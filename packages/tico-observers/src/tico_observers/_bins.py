"""The bins of the histogram: bin b stands for the bfloat16 whose bits, without the sign, are ``abs(b)``.

A value is counted at the nearest bfloat16 (halves to even, float64 rounded to float32 first), which keeps its
sign, its exponent and 7 bits of its mantissa: the bins never depend on the data, differ from a value by at
most 1/256 of it where it is normal, and are exact for bfloat16 data. Bins are in the order of values.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tico_config import Granularity, PerTensor
from tico_observers._affine_params import broadcast, statistic_shape

BINS = 2**16
OFFSET = 2**15
LARGEST = 0x7F7F
"""Bin of the largest finite bfloat16, where the few float32 that are nearer to infinity are counted too."""

_DENSE_LIMIT = 2**22


def bin_values(bins: Tensor) -> Tensor:
    """Return the value that each bin stands for, float64.

    >>> bin_values(torch.tensor([0x3F80, -0x4000])).tolist()
    [1.0, -2.0]
    """
    magnitudes = bins.abs().to(torch.int16).view(torch.bfloat16).to(torch.float64)
    return torch.where(bins < 0, -magnitudes, magnitudes)


def tensor_counts(x: Tensor) -> Tensor:
    """Return how often each bin occurs in the finite tensor `x`: int64, bin b at index ``b + OFFSET``."""
    # As read, negative zero is index 0, and magnitude m is index m below zero and OFFSET + m above.
    read = torch.bincount(_bits(x).flatten().to(torch.int32).add_(OFFSET), minlength=BINS)
    counts = torch.zeros_like(read)
    counts[1 : OFFSET + 1] = read[:OFFSET].flip(0)
    counts[OFFSET:] += read[OFFSET:]
    for sign in (-1, 1):
        counts[OFFSET + sign * LARGEST] += counts[OFFSET + sign * (LARGEST + 1)]
        counts[OFFSET + sign * (LARGEST + 1)] = 0
    return counts


def unit_counts(x: Tensor, granularity: Granularity, finite: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return the keys that occur in `x`, ascending, and how often: ``key = unit * BINS + OFFSET + bin``.

    Elements where `finite` is given and False are left out.
    """
    if isinstance(granularity, PerTensor):
        return nonzero_counts(tensor_counts(x if finite is None else x[finite]))
    bits = _bits(x).to(torch.int64)
    magnitudes = (bits & (OFFSET - 1)).clamp_(max=LARGEST)
    units, count = _unit_index(x.shape, granularity, x.device)
    keys = torch.where(bits < 0, -magnitudes, magnitudes).add_(units * BINS + OFFSET)
    flat = keys.flatten() if finite is None else keys[finite]
    if count * BINS <= _DENSE_LIMIT:
        return nonzero_counts(torch.bincount(flat, minlength=count * BINS))
    found: tuple[Tensor, Tensor] = torch.unique(flat, return_counts=True)
    return found


def nonzero_counts(counts: Tensor) -> tuple[Tensor, Tensor]:
    """Return the indices of the counts that are not zero, and these counts."""
    keys = counts.nonzero().flatten()
    return keys, counts[keys]


def merged_counts(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], units: int
) -> tuple[Tensor, Tensor]:
    """Return the keys of either side, ascending, and the sums of their counts."""
    (keys, counts), (other_keys, other_counts) = one, other
    if units * BINS <= _DENSE_LIMIT:
        dense = counts.new_zeros(units * BINS)
        dense[keys] = counts
        return nonzero_counts(dense.index_add_(0, other_keys, other_counts))
    both, index = torch.unique(torch.cat([keys, other_keys]), return_inverse=True)
    return both, torch.zeros_like(both).index_add_(0, index, torch.cat([counts, other_counts]))


def _bits(x: Tensor) -> Tensor:
    return x.detach().to(torch.float32).to(torch.bfloat16).contiguous().view(torch.int16)


def _unit_index(shape: torch.Size, granularity: Granularity, device: torch.device) -> tuple[Tensor, int]:
    """Return the index of each element's unit, broadcastable against `shape`, and the number of units."""
    units = statistic_shape(granularity, shape) or torch.Size(())
    index = torch.arange(units.numel(), device=device).view(units)
    return broadcast(index, granularity, shape), units.numel()
