"""Rows that were picked from others, told by their values."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_INTEGERS: Final = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_ROWS: Final = 512


def real_among(x: Tensor, rows: Tensor, real: Tensor) -> Tensor | None:
    """Return which rows of `x` are real, given the `rows` they were picked from; None if all are.

    A row is padding if its values are those of a row of padding and of no other.
    """
    values, own = digests(rows), digests(x)
    found = ~torch.isin(own, values[~real]) | torch.isin(own, values[real])
    return None if bool(found.all()) else found


def digests(rows: Tensor) -> Tensor:
    """Return a number for each of `rows`, the same for the same bits and, all but surely, for no others."""
    bits = rows.detach().contiguous().view(_INTEGERS[rows.element_size()])
    places = torch.arange(1, bits.shape[1] + 1, device=rows.device)
    factors = places * 0x1E3779B97F4A7C15
    factors = (factors ^ (factors >> 29)) * 0x3F58476D1CE4E5B9
    factors = factors ^ (factors >> 32)
    # Some rows at a time: integers of 64 bits take more memory than the rows themselves.
    return torch.cat([(part.to(torch.int64) * factors).sum(1) for part in torch.split(bits, _ROWS)])


def numbers_among(own: Tensor, others: Tensor) -> Tensor | None:
    """Return for each of the numbers `own` its place in `others`; None if one is not there as often.

    Of equal numbers the first one stands for the first, the second one for the second.

    >>> numbers_among(torch.tensor([7, 5, 7]), torch.tensor([5, 7, 6, 7])).tolist()
    [1, 0, 3]
    """
    ordered, order = others.sort(stable=True)
    sorted_own, own_order = own.sort(stable=True)
    nth = torch.arange(len(own), device=own.device) - torch.searchsorted(sorted_own, sorted_own)
    places = torch.searchsorted(ordered, sorted_own) + nth
    if len(own) and (int(places.max()) >= len(others) or not torch.equal(ordered[places], sorted_own)):
        return None
    return torch.empty_like(own).index_put((own_order,), order[places])
