"""Which attention scores are within reach of the softmax that reads them, and what grids make of these alone.

A mask leaves scores out by a number far below the others. What is kept has all bits set in an integer
tensor, what is left out has none: logical operations on the bits of floats choose between two tensors in a
fraction of the time of `where` and `masked_fill`, and whatever the values are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import Tensor

from tico_observers import have_numbers

OUT_OF_REACH: Final = 80.0
"""A score so far below the largest of its row has a weight below 2e-35 of the largest one."""

_BITS: Final = {
    torch.float16: torch.int16,
    torch.bfloat16: torch.int16,
    torch.float32: torch.int32,
    torch.float64: torch.int64,
}


def kept_scores(scores: Tensor) -> Tensor | None:
    """Return -1 for each score within reach of the largest of its row, 0 for all others; None if all are.

    A row of minus infinity alone has none within reach.

    >>> kept_scores(torch.tensor([[1.0, -99.0], [2.0, 3.0]])).tolist()
    [[-1, 0], [-1, -1]]
    """
    if not scores.numel():
        return None
    limit = scores.amax(-1, keepdim=True) - OUT_OF_REACH
    if not bool(_out_of_reach(scores.amin(-1, keepdim=True), limit).any()):
        return None
    bits = _BITS[scores.dtype]
    if not bool(limit.isfinite().all()):  # differences may be NaN, whose sign means nothing
        return _out_of_reach(scores, limit).to(bits).sub_(1)
    # The sign of a difference of finite limits is that of the comparison, which takes five times as long.
    return (scores - limit).view(bits).bitwise_right_shift_(8 * scores.itemsize - 1).bitwise_not_()


def kept_exponents(exponents: Tensor) -> Tensor | None:
    """Return 0 for each exponent whose power is out of reach of 1, -1 for all others; None if all are kept.

    >>> kept_exponents(torch.tensor([1.0, -99.0])).tolist()
    [-1, 0]
    """
    left_out = exponents < -OUT_OF_REACH
    return left_out.to(_BITS[exponents.dtype]).sub_(1) if bool(left_out.any()) else None


def left_out_scores(scores: Tensor) -> Tensor:
    """Return which scores are out of reach of the largest of their row.

    >>> left_out_scores(torch.tensor([[1.0, -99.0], [2.0, 3.0]])).tolist()
    [[False, True], [False, False]]
    """
    return _out_of_reach(scores, scores.amax(-1, keepdim=True) - OUT_OF_REACH)


def left_out_exponents(exponents: Tensor) -> Tensor:
    """Return which exponents have a power that is out of reach of 1."""
    return exponents < -OUT_OF_REACH


def moved_but(scores: Tensor, move: Callable[[Tensor], Tensor], left_out: Tensor) -> Tensor:
    """Return `scores` moved to a grid that follows from each row, but for those in `left_out`.

    >>> halves = lambda x: x / x.amax(-1, keepdim=True)
    >>> moved_but(torch.tensor([1.0, 2.0, 9.0]), halves, torch.tensor([False, False, True])).tolist()
    [0.5, 1.0, 9.0]
    """
    largest = scores.masked_fill(left_out, -torch.inf).amax(-1, keepdim=True)
    # A row of which nothing is left has only zero, which every grid has.
    inner = largest.masked_fill(largest == -torch.inf, 0.0)
    return torch.where(left_out, scores, move(torch.where(left_out, inner, scores)))


def _out_of_reach(scores: Tensor, limit: Tensor) -> Tensor:
    return (scores < limit) | (limit == -torch.inf)


def with_zeros(x: Tensor, kept: Tensor) -> Tensor:
    """Return `x` with 0 for what is not `kept`; it leads to no gradient.

    >>> with_zeros(torch.tensor([2.0, torch.nan]), torch.tensor([-1, 0])).tolist()
    [2.0, 0.0]
    """
    bits = x.detach().view(_BITS[x.dtype])
    return bits.bitwise_and(kept.to(bits.dtype)).view(x.dtype)


def chosen_(x: Tensor, other: Tensor, kept: Tensor) -> Tensor:
    """Return `x` with `other`, of the same dtype, where it is not `kept`; `x` is written to.

    >>> chosen_(torch.tensor([2.0, 3.0]), torch.tensor(-torch.inf), torch.tensor([-1, 0])).tolist()
    [2.0, -inf]
    """
    bits, others = x.detach().view(_BITS[x.dtype]), other.detach().view(_BITS[x.dtype])
    return bits.bitwise_xor_(others).bitwise_and_(kept).bitwise_xor_(others).view(x.dtype)


def moved_within_reach(scores: Tensor, move: Callable[[Tensor], Tensor], *, by_row: bool) -> Tensor:
    """Return `scores` moved to a grid, but for those out of reach of the softmax, which do not count.

    Args:
        scores: (…, keys).
        move: what makes of a tensor a new one, on the grid.
        by_row: whether the grid follows from the row that comes, so that it must not see what is left out.
    """
    if not have_numbers(scores) or (scores.requires_grad and torch.is_grad_enabled()):
        return _moved_by_where(scores, move)
    kept = kept_scores(scores)
    if kept is None:
        return move(scores)
    seen = chosen_(scores.clone(), scores.amax(-1, keepdim=True), kept) if by_row else scores
    return chosen_(move(seen), scores, kept)


def _moved_by_where(scores: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Return the same by operators that can be traced and lead gradients through: the definition."""
    largest = scores.amax(-1, keepdim=True)
    left_out = _out_of_reach(scores, largest - OUT_OF_REACH)
    moved = move(torch.where(left_out, largest, scores))
    return torch.where(left_out, scores, moved)
