"""Which share of its range a row's grid spans best, by trying them all.

Shrinking a range leaves the zero point where it is, so that in units of the whole range's scale, shifted to
codes that start at 0, the candidates differ by one factor only. What a candidate cuts off, it and every
narrower one lose at least: rows whose best error is smaller than that are done.
"""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from tico_observers.products import total
from tico_quantizers.solvers._group_grid import GroupGrid

# Elementwise functions over at most 2**15 elements are one piece of work, whatever the number of threads.
_PIECE_COLUMNS = 32
_PIECE_ROWS = 1024
_BATCH = 8


@attrs.frozen(eq=False)
class _Rows:
    """The rows still searched: the values (columns, rows) in steps of the whole range's grid, zero points.

    `roots` (columns, ) are those of the weight of each column's squared error.
    """

    steps: Tensor
    zero: Tensor
    levels: int
    roots: Tensor | None

    def only(self, kept: Tensor) -> _Rows:
        """Return some of the rows, by their index."""
        return attrs.evolve(self, steps=self.steps.index_select(1, kept), zero=self.zero[kept])

    def errors(self, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the squared error (shares, rows) of each candidate, and what the last one cuts off."""
        pieces = range(0, self.steps.shape[1], _PIECE_ROWS)
        found = torch.cat([self._errors_of(start, shares) for start in pieces], 1).to(torch.float64)
        factors = torch.tensor([*shares, shares[-1]], dtype=torch.float64, device=found.device)
        found *= factors.square()[:, None]
        return found[:-1], found[-1]

    def _errors_of(self, start: int, shares: Sequence[float]) -> Tensor:
        """Return, in units of each candidate's scale, the errors of some rows, then what is cut off."""
        part, zero = self.steps[:, start : start + _PIECE_ROWS], self.zero[start : start + _PIECE_ROWS]
        exact, rounded, summed = part.new_empty(3, min(len(part), _PIECE_COLUMNS), part.shape[1])
        pieces = [
            (steps, exact[: len(steps)], rounded[: len(steps)], summed[: len(steps)], roots)
            for steps, roots in zip(torch.split(part, _PIECE_COLUMNS), self._split_roots(), strict=True)
        ]
        sums = []
        for share, cut in [*((share, False) for share in shares), (shares[-1], True)]:
            summed.zero_()
            for steps, at, errors, squares, roots in pieces:
                torch.add(zero, steps, alpha=1 / share, out=at)
                torch.clamp(at if cut else torch.round(at, out=errors), 0, self.levels, out=errors).sub_(at)
                weighted = errors if roots is None else errors.mul_(roots)
                squares.addcmul_(weighted, weighted)
            sums.append(summed.sum(0))
        return torch.stack(sums)

    def _split_roots(self) -> Sequence[Tensor | None]:
        if self.roots is None:
            return [None] * -(-len(self.steps) // _PIECE_COLUMNS)
        return torch.split(self.roots[:, None], _PIECE_COLUMNS)


def least_error_share(
    columns: Tensor, whole: GroupGrid, steps: int, *, importance: Tensor | None, shared: bool
) -> Tensor:
    """Return the share of the range, among ``i / steps``, whose grid has the least squared error.

    `columns` is (columns, rows), `whole` the grid of the whole range of each row; the result is float64
    (rows,). `importance` (columns,) weighs the errors of each column. With `shared`, `whole` is one grid,
    and so is the result. Of equally good shares, the widest.
    """
    rows = _rows(columns, whole, importance)
    best = torch.full_like(rows.zero[:1] if shared else rows.zero, torch.inf, dtype=torch.float64)
    found, searched = torch.ones_like(best), torch.arange(len(best), device=best.device)
    for first in range(steps, 0, -_BATCH):
        shares = [number / steps for number in range(first, max(first - _BATCH, 0), -1)]
        errors, cut_off = rows.errors(shares)
        if shared:
            errors, cut_off = torch.stack([total(each) for each in errors])[:, None], total(cut_off).view(1)
        known, least = best[searched], errors.amin(0)
        widest = torch.where(errors == least, errors.new_tensor(shares)[:, None], 0.0).amax(0)
        found[searched] = torch.where(least < known, widest, found[searched])
        best[searched] = torch.minimum(least, known)
        unfinished = cut_off < best[searched]
        count = int(unfinished.sum())
        if not count:
            break
        if 8 * count < 7 * len(searched):
            left = unfinished.nonzero().flatten()
            rows, searched = rows.only(left), searched[left]
    return found


def _rows(columns: Tensor, whole: GroupGrid, importance: Tensor | None) -> _Rows:
    count = columns.shape[1]
    zero = whole.zero.to(torch.float32)
    roots = None if importance is None else (importance / importance.max()).sqrt().to(torch.float32)
    steps = columns / whole.scale.expand(count)
    return _Rows(steps, zero.expand(count), whole.dtype.qmax - whole.dtype.qmin, roots)
