"""Integer weights as super-blocks of 256 columns: the two levels of their scales, and their bytes."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import SuperBlock
from tico_export.gguf_files._tensor_types import (
    Q6_K,
    SUPER_BLOCK,
    SuperBlockType,
    six_bit_bytes,
)
from tico_export.source import IntegerWeight

SUPER_BLOCK_TYPES = (Q6_K,)
"""From the one that takes the fewest bytes."""


@attrs.frozen(eq=False, kw_only=True)
class SuperBlocks:
    """A weight in super-blocks of a type, which hold its very values.

    `unit` is the float16 that the scales of a super-block share, (rows, super-blocks); `steps` are the
    integers that it is multiplied by, int32 (rows, super-blocks, blocks).
    """

    weight: IntegerWeight
    type: SuperBlockType
    unit: Tensor
    steps: Tensor
    exact: bool = True

    def content(self, order: Tensor | None) -> bytes:
        """Return the bytes of the super-blocks, the rows in another `order` where one is given."""
        codes, unit, steps = self.weight.codes() - self.weight.zero_point[:, :1], self.unit, self.steps
        if order is not None:
            codes, unit, steps = codes[order], unit[order], steps[order]
        return six_bit_bytes(codes, unit, steps)


def super_blocks_of(weight: IntegerWeight) -> SuperBlocks | None:
    """Return `weight`, whose scales share super-blocks, in the smallest type that holds it; None for none."""
    shared = weight.packed.format.super_block
    if shared is None or shared.columns != SUPER_BLOCK or weight.columns % SUPER_BLOCK:
        return None
    if not (weight.format.even and weight.is_symmetric):
        return None
    for kind in SUPER_BLOCK_TYPES:
        if weight.dtype.bits <= kind.bits and shared.scale_bits <= kind.scale_bits:
            made = _made(weight, kind, shared)
            if made is not None:
                return made
    return None


def _made(weight: IntegerWeight, kind: SuperBlockType, shared: SuperBlock) -> SuperBlocks | None:
    size = weight.group_size
    if size is None or size % kind.group or SUPER_BLOCK % size:
        return None
    scale = weight.scale.repeat_interleave(size // kind.group, 1).view(len(weight.scale), -1, kind.blocks)
    levels = two_levels(scale, shared.scale_bits)
    return None if levels is None else SuperBlocks(weight=weight, type=kind, unit=levels[0], steps=levels[1])


def two_levels(scale: Tensor, bits: int) -> tuple[Tensor, Tensor] | None:
    """Return a float16 and integers of `bits` bits whose products in float32 are the very `scale`.

    There may be several such pairs, which all have the same products; the one with the largest integers is
    taken. None where a super-block has no such pair.

    Args:
        scale: float32 above 0, (rows, super-blocks, blocks).
        bits: of the integers, at most 8.

    Returns:
        The floats, float16 (rows, super-blocks), and the integers, int32 (rows, super-blocks, blocks).
    """
    largest = scale.amax(-1)
    unit = torch.zeros_like(largest, dtype=torch.float16)
    steps = torch.zeros_like(scale, dtype=torch.int32)
    missing = torch.ones_like(largest, dtype=torch.bool)
    for most in range(2**bits - 1, 0, -1):
        candidate = (largest / most).half()
        wanted = candidate.float().unsqueeze(-1)
        count = (scale / wanted).round().clamp(max=most)
        found = (wanted * count == scale).all(-1) & candidate.isfinite() & missing
        unit, missing = torch.where(found, candidate, unit), missing & ~found
        steps = torch.where(found.unsqueeze(-1), count.nan_to_num(posinf=0).int(), steps)
        if not bool(missing.any()):
            return unit, steps
    return None
