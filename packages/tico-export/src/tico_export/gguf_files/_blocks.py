"""Integer weights as blocks of 32 columns: which type holds them, and with which scales."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from tico_config import FloatFormat, Found, Problem
from tico_export.gguf_files._element_blocks import ElementBlocks
from tico_export.gguf_files._super_blocks import SuperBlocks, super_block_type, super_blocks_of
from tico_export.gguf_files._tensor_types import BLOCK, BLOCK_TYPES, SUPER_BLOCK, BlockType, block_bytes
from tico_export.source import QuantizedWeight

_LARGEST = torch.finfo(torch.float16).max


@attrs.frozen(eq=False, kw_only=True)
class Blocks:
    """A weight in blocks of a type; `scale` and `minimum` are float16 (rows, blocks).

    `start` is what the codes are counted from, int32: of each block (rows, blocks), or one number for all.
    `exact` says whether the blocks hold the very values of the weight.
    """

    weight: QuantizedWeight
    type: BlockType
    start: Tensor
    scale: Tensor
    minimum: Tensor
    exact: bool

    def content(self, order: Tensor | None) -> bytes:
        """Return the bytes of the blocks, the rows in another `order` where one is given."""
        steps, scale, minimum = self._steps(), self.scale, self.minimum
        if order is not None:
            steps, scale, minimum = steps[order], scale[order], minimum[order]
        return block_bytes(self.type, steps, scale, minimum)

    def noise(self) -> tuple[float, float]:
        """Return the sums of the squares of the weight, and of what rounding its scales changed."""
        lowest = self.minimum.float() if self.type.has_minimum else torch.zeros_like(self.scale).float()
        steps = self._steps().view(*self.scale.shape, BLOCK)
        values = steps * self.scale.float().unsqueeze(-1) + lowest.unsqueeze(-1)
        meant = self.weight.dequantize().view(values.shape)
        return meant.double().square().sum().item(), (values - meant).double().square().sum().item()

    def _steps(self) -> Tensor:
        """Return the codes as the blocks have them, (rows, columns)."""
        start = self.start if self.start.ndim == 0 else self.start.repeat_interleave(BLOCK, 1)
        return self.weight.codes() - start


def blocks_of(weight: QuantizedWeight, *, nearest: bool) -> Blocks | SuperBlocks | ElementBlocks | None:
    """Return `weight` in the smallest blocks that hold it; None where there are none.

    They hold its very values, or, with `nearest`, scales and minima that are rounded to float16. Scales that
    share super-blocks stay as they are where a type has super-blocks.
    """
    if isinstance(weight.dtype, FloatFormat):
        return ElementBlocks(weight=weight) if weight.format.even else None
    shared = super_blocks_of(weight)
    blocks = _candidates(weight) if weight.offset is None else ()
    found: list[Blocks | SuperBlocks] = [*blocks, *([] if shared is None else [shared])]
    for each in sorted(found, key=lambda made: made.type.bytes_of((SUPER_BLOCK,))):
        if each.exact or (nearest and isinstance(each, Blocks) and _is_finite(each)):
            return each
    return None


def block_problem(weight: QuantizedWeight, *, nearest: bool) -> Problem | None:
    """Return what keeps `weight` from being blocks, and the ways out; None where nothing does."""
    if blocks_of(weight, nearest=nearest) is not None:
        return None
    if weight.packed.format.super_block is not None:
        return _super_block_problem(weight)
    if weight.columns % BLOCK:
        remedy = "leave it in float, with the override no_quant()"
        return _problem(weight, f"it has {weight.columns} columns", f"columns in blocks of {BLOCK}", remedy)
    if _of_blocks(weight, weight.scale) is None or isinstance(weight.dtype, FloatFormat):
        remedy = "take a group_size that 32 divides, and act_order=False or static_groups=True"
        return _problem(weight, _units(weight), f"runs of {BLOCK} columns that share a scale", remedy)
    if not any(_holds(kind, weight) for kind in BLOCK_TYPES):
        low, high = _steps_of(weight)
        found = f"its codes less their zero points go from {low} to {high}"
        return _problem(weight, found, "from -128 to 127, or at most 5 bits", "take symmetric codes")
    return _scale_problem(weight, nearest=nearest)


def _scale_problem(weight: QuantizedWeight, *, nearest: bool) -> Problem:
    if not nearest:
        return _problem(
            weight,
            "its scales are no float16, which the blocks of GGUF hold",
            "scales of float16",
            'GGUF(scales="nearest") rounds them and tells what it cost',
        )
    return _problem(weight, "its scales are beyond float16's range", "scales up to 65504", None)


def _super_block_problem(weight: QuantizedWeight) -> Problem:
    if weight.columns % SUPER_BLOCK:
        remedy = "leave super_block out for it, by an override with super_block=None, or leave it in float"
        found, expected = f"it has {weight.columns} columns", f"columns in super-blocks of {SUPER_BLOCK}"
        return _problem(weight, found, expected, remedy)
    expected = (
        "int6 symmetric, runs of 16 columns, scales of 7 bits under super-blocks of 256"
        if weight.offset is None
        else "uint4 or uint5, runs of 32 columns, scales and offsets of 6 bits under super-blocks of 256"
    )
    if super_block_type(weight) is not None:
        found = f"its scales or offsets are no such products as {weight.packed.format.super_block} have"
        return _problem(weight, found, expected, "convert it again, and leave its buffers as they are")
    found = f"it has {weight.format}, and llama.cpp takes {expected}"
    return _problem(weight, found, expected, "profiles.LLAMA_CPP gives configs that are legal")


def _candidates(weight: QuantizedWeight) -> Iterator[Blocks]:
    """Yield `weight` in every type that its codes fit into, from the smallest."""
    if weight.columns % BLOCK:
        return
    scale, zero_point = (_of_blocks(weight, each) for each in (weight.scale, weight.zero_point))
    if scale is None or zero_point is None:
        return
    halves = scale.clamp(max=2 * _LARGEST).half()
    minima = (weight.dtype.qmin - zero_point).double() * halves.double()
    is_half = torch.equal(halves.float(), scale)
    for kind in BLOCK_TYPES:
        if _holds(kind, weight):
            yield Blocks(
                weight=weight,
                type=kind,
                start=torch.tensor(weight.dtype.qmin) if kind.has_minimum else zero_point,
                scale=halves,
                minimum=minima.half(),
                exact=is_half and (not kind.has_minimum or torch.equal(minima.half().double(), minima)),
            )


def _holds(kind: BlockType, weight: QuantizedWeight) -> bool:
    """Tell whether the codes of `weight` fit into those of a type."""
    if kind.has_minimum:
        return weight.dtype.bits <= kind.bits
    low, high = _steps_of(weight)
    return kind.lowest <= low and high <= kind.highest


def _is_finite(blocks: Blocks) -> bool:
    """Tell whether float16 reaches the scales; where they are too small for it, blocks are 0."""
    minimum = blocks.minimum if blocks.type.has_minimum else blocks.scale
    return bool(blocks.scale.isfinite().all()) and bool(minimum.isfinite().all())


def _steps_of(weight: QuantizedWeight) -> tuple[int, int]:
    """Return the smallest and the largest difference of a code from its zero point that there may be."""
    low, high = weight.zero_point.aminmax()
    return weight.dtype.qmin - int(high), weight.dtype.qmax - int(low)


def _of_blocks(weight: QuantizedWeight, values: Tensor) -> Tensor | None:
    """Return the one of `values` (rows, groups) that each block has; None where a block has several."""
    index, size, blocks = weight.group_index, weight.group_size, weight.columns // BLOCK
    if index is not None:
        places = index.long().view(blocks, BLOCK)
        return values[:, places[:, 0]] if bool((places == places[:, :1]).all()) else None
    if size is None:
        return values.expand(-1, blocks)
    return None if size % BLOCK else values.repeat_interleave(size // BLOCK, 1)[:, :blocks]


def _units(weight: QuantizedWeight) -> str:
    if weight.group_index is not None:
        return "the columns of its groups are no runs of 32"
    return f"its groups are of {weight.group_size} columns"


def _problem(weight: QuantizedWeight, sentence: str, expected: str, remedy: str | None) -> Problem:
    return Problem(
        module=weight.path,
        field="weight",
        value=Found(sentence),
        expected=expected,
        sentence=sentence,
        remedy=remedy,
    )
