"""Integer weights as super-blocks of 256 columns: the two levels of their scales, and their bytes."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import SuperBlock
from tico_export.gguf_files._tensor_types import (
    Q4_K,
    Q5_K,
    Q6_K,
    SUPER_BLOCK,
    Levels,
    SuperBlockType,
    offset_block_bytes,
    six_bit_bytes,
)
from tico_export.source import QuantizedWeight

SUPER_BLOCK_TYPES = (Q4_K, Q5_K, Q6_K)
"""From the one that takes the fewest bytes."""


@attrs.frozen(eq=False, kw_only=True)
class SuperBlocks:
    """A weight in super-blocks of a type, which hold its very values.

    `scales` and `offsets` are float16 and the integers that they are multiplied by.
    """

    weight: QuantizedWeight
    type: SuperBlockType
    scales: Levels
    offsets: Levels | None
    exact: bool = True

    def content(self, order: Tensor | None) -> bytes:
        """Return the bytes of the super-blocks, the rows in another `order` where one is given."""
        codes = self.weight.codes() - self.weight.zero_point[:, :1]
        codes = codes if order is None else codes[order]
        scales = _in_order(self.scales, order)
        if self.offsets is None:
            return six_bit_bytes(codes, *scales)
        return offset_block_bytes(self.type, codes, scales, _in_order(self.offsets, order))


def _in_order(levels: Levels, order: Tensor | None) -> Levels:
    return levels if order is None else (levels[0][order], levels[1][order])


def super_blocks_of(weight: QuantizedWeight) -> SuperBlocks | None:
    """Return `weight`, whose scales share super-blocks, in the smallest type that holds it; None for none."""
    shared, kind = weight.packed.format.super_block, super_block_type(weight)
    return None if shared is None or kind is None else _made(weight, kind, shared)


def super_block_type(weight: QuantizedWeight) -> SuperBlockType | None:
    """Return the smallest type whose super-blocks have room for the format of `weight`; None for none."""
    shared, size = weight.packed.format.super_block, weight.group_size
    if shared is None or shared.columns != SUPER_BLOCK or weight.columns % SUPER_BLOCK:
        return None
    if not (weight.format.even and (weight.is_symmetric or _counts_from_0(weight))):
        return None
    fitting = (
        kind
        for kind in SUPER_BLOCK_TYPES
        if weight.dtype.bits <= kind.bits and size and size % kind.group == 0 and _fits(shared, kind)
    )
    return next(fitting, None)


def _counts_from_0(weight: QuantizedWeight) -> bool:
    """Tell whether values are products of unsigned codes and scales, less offsets."""
    return weight.offset is not None and not weight.dtype.signed and not bool(weight.zero_point.any())


def _fits(shared: SuperBlock, kind: SuperBlockType) -> bool:
    """Tell whether a type has room for what groups share."""
    if shared.offset_bits is None or kind.offset_bits is None:
        return shared.offset_bits == kind.offset_bits and shared.scale_bits <= kind.scale_bits
    return shared.offset_bits <= kind.offset_bits and shared.scale_bits <= kind.scale_bits


def _made(weight: QuantizedWeight, kind: SuperBlockType, shared: SuperBlock) -> SuperBlocks | None:
    size = weight.group_size or SUPER_BLOCK
    scales = two_levels(_of_blocks(weight.scale, size, kind), shared.scale_bits)
    if weight.offset is None or shared.offset_bits is None:
        return None if scales is None else SuperBlocks(weight=weight, type=kind, scales=scales, offsets=None)
    offsets = two_levels(_of_blocks(weight.offset, size, kind), shared.offset_bits)
    if scales is None or offsets is None:
        return None
    return SuperBlocks(weight=weight, type=kind, scales=scales, offsets=offsets)


def _of_blocks(values: Tensor, size: int, kind: SuperBlockType) -> Tensor:
    """Return the one of `values` (rows, groups) that each block has, (rows, super-blocks, blocks)."""
    return values.repeat_interleave(size // kind.group, 1).view(len(values), -1, kind.blocks)


def two_levels(scale: Tensor, bits: int) -> Levels | None:
    """Return a float16 and integers of `bits` bits whose products in float32 are the very `scale`.

    There may be several such pairs, which all have the same products; the one with the largest integers is
    taken. None where a super-block has no such pair.

    Args:
        scale: float32 of at least 0, (rows, super-blocks, blocks): scales or offsets.
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
        count = (scale / wanted).round().clamp(max=most).nan_to_num(nan=0.0)  # where all are 0
        found = (wanted * count == scale).all(-1) & candidate.isfinite() & missing
        unit, missing = torch.where(found, candidate, unit), missing & ~found
        steps = torch.where(found.unsqueeze(-1), count.nan_to_num(posinf=0).int(), steps)
        if not bool(missing.any()):
            return unit, steps
    return None
