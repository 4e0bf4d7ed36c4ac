"""Rows that were picked from others, told by their values."""

from __future__ import annotations

import torch
from torch import Tensor


def real_among(x: Tensor, rows: Tensor, real: Tensor) -> Tensor | None:
    """Return which rows of `x` are real, given the `rows` they were picked from; None if all are.

    A row is padding if its values are those of a row of padding and of no other.
    """
    digests, own = _digests(rows), _digests(x)
    found = ~torch.isin(own, digests[~real]) | torch.isin(own, digests[real])
    return None if bool(found.all()) else found


def _digests(rows: Tensor) -> Tensor:
    """Return a number for each of `rows`, the same for the same bits and, all but surely, for no others."""
    bits = rows.contiguous().view(torch.uint8).to(torch.int64)
    places = torch.arange(1, bits.shape[1] + 1, device=rows.device)
    factors = places * 0x1E3779B97F4A7C15
    factors = (factors ^ (factors >> 29)) * 0x3F58476D1CE4E5B9
    return (bits * (factors ^ (factors >> 32))).sum(1)
