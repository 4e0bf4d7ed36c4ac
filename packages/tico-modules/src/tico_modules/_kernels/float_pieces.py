"""Products with an integer weight that becomes floats a piece at a time, never as a whole."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_modules._kernels import native_operators as operators
from tico_modules._storage.packed_weight import PackedWeight

# Up to so many tokens ``W xᵀ`` is faster than ``x Wᵀ``: oneDNN then rearranges the tokens, not the weight.
_TALL_TOKENS: Final = 256

# Elements of the weight in one product: in smaller ones its fixed costs count.
_PIECE: Final = 2**22

# Elements that an operator makes float32 at a time: 1 MiB, which a second-level cache holds.
_PART: Final = 2**18


def multiply_in_pieces(x: Tensor, shape: Sequence[int], fill: Callable[[Tensor, int], None]) -> Tensor:
    """Return ``x Wᵀ`` in the dtype of `x` for W of `shape`.

    ``fill(piece, start)`` writes as many rows of W as `piece` has, from the row `start` on.
    """
    rows, columns = shape
    step = min(max(_PIECE // columns, 16), rows)
    whole = x.new_empty(step, columns)
    tall = len(x) <= _TALL_TOKENS
    product = x.new_empty((rows, len(x)) if tall else (len(x), rows))
    for start in range(0, rows, step):
        piece = whole[: rows - start]
        fill(piece, start)
        if tall:
            torch.mm(piece, x.T, out=product[start : start + step])
        else:
            product[:, start : start + step] = x @ piece.T
    return product.T.contiguous() if tall else product


@attrs.frozen(eq=False)
class RowwiseCodes:
    """Codes of 2, 4 or 8 bits that an operator turns into floats, a row for each group of columns.

    A single scale a row is left to the product.
    """

    weight: PackedWeight

    @classmethod
    def of(cls, weight: PackedWeight) -> RowwiseCodes | None:
        """Return the codes of `weight`, or None where they need other ways.

        Those are widths without an operator, groups that are no whole bytes side by side, and scales for
        which float16 has no normal number.
        """
        run = weight.columns if has_one_scale_a_row(weight) else weight.group_size or 1
        whole = weight.columns % run == 0 and run * weight.bits % 8 == 0 and weight.group_index is None
        if not whole or weight.bits not in operators.ROWWISE or not operators.rowwise_works(weight.bits):
            return None
        if weight.bits < 8 and not has_one_scale_a_row(weight):
            half = torch.finfo(torch.float16)
            low, high = weight.scale.aminmax()
            if float(low) < half.smallest_normal or float(high) * 2**weight.bits > half.max:
                return None
        return cls(weight)

    def fill(self, piece: Tensor, start: int) -> None:
        """Write the rows of the weight from `start` on into `piece`."""
        grid = self._read_grid(start, start + len(piece))
        rows = max(_PART // piece.shape[1], 1)
        for first in range(0, len(piece), rows):
            here = slice(first, first + rows)
            self._fill_part(piece[here], grid[here], start + first)

    def _read_grid(self, start: int, stop: int) -> Tensor:
        """Return scale and offset of each group of some rows as the operator reads them behind the codes."""
        weight = self.weight
        scale = weight.scale[start:stop]
        if has_one_scale_a_row(weight):
            scale = torch.ones_like(scale)
        grid = torch.stack([scale, (weight.dtype.qmin - weight.zero_point[start:stop]) * scale], -1)
        return grid.to(torch.float32 if weight.bits == 8 else torch.float16).view(torch.uint8)

    def _fill_part(self, part: Tensor, grid: Tensor, start: int) -> None:
        codes = self.weight.codes[start : start + len(part)]
        if codes.dtype == torch.int8:
            codes = codes.view(torch.uint8) ^ 128
        beside = torch.cat([codes.view(len(grid), grid.shape[1], -1), grid], 2).flatten(0, 1)
        part.copy_(operators.unpack_rowwise(beside, self.weight.bits).view(part.shape))


def has_one_scale_a_row(weight: PackedWeight) -> bool:
    """Tell whether all columns of a row share a scale."""
    return weight.scale.shape[1] == 1
