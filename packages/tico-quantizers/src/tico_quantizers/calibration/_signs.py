"""Signs that look drawn at random, and follow from places alone."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor

Bits = TypeVar("Bits", int, Tensor)


def signs_of(shape: tuple[int, ...], device: torch.device, *, seed: int = 0) -> Tensor:
    """Return one of 1 and -1, float32, for each place of a tensor of `shape`.

    They come from the place and from `seed` alone: not from how large an axis is, not from a generator.

    >>> signs_of((2, 3), torch.device("cpu")).abs().sum().item()
    6.0
    """
    bits = _mixed(torch.tensor(seed, dtype=torch.int64, device=device))
    for size in shape:
        place = torch.arange(size, dtype=torch.int64, device=device)
        bits = _mixed(bits.unsqueeze(-1) + place)
    return (1 - 2 * (bits & 1)).to(torch.float32)


def among_real(drawn: Tensor, like: Tensor, real: Tensor | None) -> Tensor:
    """Return what is `drawn` for the elements of a sample, for each sample of `like` (samples, tokens, …).

    Where `real` (samples, tokens) tells that a token is padding it is 0, and the places of the others are
    counted without it. Without padding it is the same for all samples.
    """
    if real is None or like.ndim != 3:
        return drawn
    place = (real.to(torch.int64).cumsum(-1) - 1).clamp(min=0)
    return drawn[place] * real.unsqueeze(-1)


def number_of(seed: int) -> int:
    """Return a whole number of up to 31 bits, from `seed` alone."""
    return _mixed(seed + 1)


def _mixed(bits: Bits) -> Bits:
    """Return other 31-bit integers, each bit of which depends on every bit of those given."""
    for factor in (0x45D9F3B, 0x119DE1F3):
        bits = ((bits ^ (bits >> 16)) * factor) & 0x7FFFFFFF
    return bits ^ (bits >> 16)
