"""How far codes are from the weight that they were made of, and how often each code occurs."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

from tico_modules._storage.packed_weight import PackedWeight
from tico_observers import products

_VALUES: Final = 1 << 22
"""How many values are dequantized at a time."""

_COUNTED: Final = 1 << 20
"""About how many codes are enough to see their distribution."""


def weight_sqnr(weight: Tensor, packed: PackedWeight) -> float | None:
    """Return by how many dB the squares of `weight` (rows, …) exceed those of what `packed` changes of it.

    None where there is no such number: the codes change nothing, or one of the two has no values.

    >>> from tico_config import DType
    >>> weight = torch.tensor([[0.0, 1.0, 14.1, 15.0]])
    >>> packed = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    >>> round(weight_sqnr(weight, packed), 1)
    46.3
    """
    if weight.is_meta or packed.codes.is_meta:
        return None
    signal = noise = 0.0
    for first in range(0, len(weight), step := max(1, _VALUES // max(1, packed.columns))):
        rows = weight[first : first + step].detach()
        index = torch.arange(first, first + len(rows), device=packed.codes.device)
        change = packed.rows(index).to(rows.device).flatten(1).double() - rows.flatten(1).double()
        signal += float(products.total(rows.double().square()))
        noise += float(products.total(change.square()))
    return 10 * math.log10(signal / noise) if signal and noise and math.isfinite(signal / noise) else None


def count_codes(packed: PackedWeight) -> tuple[tuple[int, ...], int]:
    """Return how often each code occurs, from the lowest to the highest, and in how many rows they are.

    Of a large weight these are rows at equal distances.

    >>> from tico_config import DType
    >>> weight = torch.tensor([[0.0, 1.0, 14.1, 15.0]])
    >>> packed = PackedWeight.round_to_nearest(weight, DType.uint(4), symmetric=False, group_size=None)
    >>> count_codes(packed)
    ((1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1), 1)
    """
    form = packed.format
    step = -(-form.rows * form.columns // _COUNTED) or 1
    rows = packed.codes[::step]
    codes = form.unpack(rows).flatten().to(torch.int64) + (form.origin - form.dtype.qmin)
    counts = torch.bincount(codes, minlength=form.dtype.qmax - form.dtype.qmin + 1)
    return tuple(counts.tolist()), len(rows)
