"""Codes packed into words of 32 bits."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from tico_observers import pack


def words_of(codes: Tensor, bits: int) -> Tensor:
    """Return unsigned `codes` (rows, columns) as int32 (rows, ceil(columns * bits / 32)).

    Bit `j` of the code in column `i` is bit ``i * bits + j`` of its row, counted from the lowest bit of the
    row's first word. No bit is left out between codes, and those after the last are 0.

    >>> words_of(torch.tensor([[0, 15, 9]]), 4).tolist() == [[0x9F0]]
    True
    """
    held = pack(codes, bits)
    return F.pad(held, (0, -held.shape[-1] % 4)).view(torch.int32)
