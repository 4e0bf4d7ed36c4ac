"""Which share of its range a row's grid spans best, by trying them all.

Shrinking a range leaves the zero point where it is, so that in units of the whole range's scale, shifted to
codes that start at 0, the candidates differ by one factor only. What a candidate cuts off, it and every
narrower one lose at least: rows whose best error is smaller than that are done.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import attrs
import torch
from torch import Tensor

from tico_observers import AffineParams

# Elementwise functions and sums over so few elements are one piece of work, whatever the number of threads.
_PIECE_COLUMNS = 64
_PIECE_ROWS = 256
_BATCH = 8


@attrs.frozen(eq=False)
class _Rows:
    """The rows still searched, (columns, rows), with scale and zero point, and the weight of each column."""

    columns: Tensor
    scale: Tensor
    zero: Tensor
    levels: int
    importance: Tensor | None

    def only(self, kept: Tensor) -> _Rows:
        """Return some of the rows, by their index."""
        return attrs.evolve(self, columns=self.columns[:, kept], scale=self.scale[kept], zero=self.zero[kept])

    def errors(self, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the squared error (shares, rows) of each candidate, and what the last one cuts off."""
        rows = self.columns.shape[1]
        found = torch.zeros(len(shares) + 1, rows, dtype=torch.float64, device=self.columns.device)
        for start in range(0, rows, _PIECE_ROWS):
            for low in range(0, len(self.columns), _PIECE_COLUMNS):
                found[:, start : start + _PIECE_ROWS] += torch.stack(list(self._piece(start, low, shares)))
        factors = torch.tensor([*shares, shares[-1]], dtype=torch.float64, device=found.device)
        found *= factors.square()[:, None]
        return found[:-1], found[-1]

    def _piece(self, start: int, low: int, shares: Sequence[float]) -> Iterator[Tensor]:
        """Yield, in units of each candidate's scale, the error of a few columns, then what is cut off."""
        stop = start + _PIECE_ROWS
        steps = self.columns[low : low + _PIECE_COLUMNS, start:stop] / self.scale[start:stop]
        zero, weights = self.zero[start:stop], self.importance
        if weights is not None:
            weights = weights[low : low + _PIECE_COLUMNS, None]
        exact, rounded = torch.empty_like(steps), torch.empty_like(steps)
        for share in shares:
            torch.add(zero, steps, alpha=1 / share, out=exact)
            torch.round(exact, out=rounded).clamp_(0, self.levels).sub_(exact)
            yield _squares(rounded, weights)
        # The outermost codes lie at most half a step beyond the range.
        yield _squares(torch.clamp(exact, -0.5, self.levels + 0.5, out=rounded).sub_(exact), weights)


def _squares(errors: Tensor, weights: Tensor | None) -> Tensor:
    squares = errors.square_()
    return (squares if weights is None else squares.mul_(weights)).sum(0)


def least_error_share(
    columns: Tensor, whole: AffineParams, steps: int, *, importance: Tensor | None, shared: bool
) -> Tensor:
    """Return the share of the range, among ``i / steps``, whose grid has the least squared error.

    `columns` is (columns, rows), `whole` the grid of the whole range of each row; the result is float64
    (rows,). `importance` (columns,) weighs the errors of each column. With `shared`, `whole` is one grid,
    and so is the result. Of equally good shares, the widest.
    """
    rows = _rows(columns, whole, importance)
    best = torch.full_like(rows.scale[:1] if shared else rows.scale, torch.inf, dtype=torch.float64)
    found, searched = torch.ones_like(best), torch.arange(len(best), device=best.device)
    for first in range(steps, 0, -_BATCH):
        shares = [number / steps for number in range(first, max(first - _BATCH, 0), -1)]
        errors, cut_off = rows.errors(shares)
        if shared:
            errors, cut_off = errors.sum(1, keepdim=True), cut_off.sum(0, keepdim=True)
        which = errors.argmin(0)
        least = errors.gather(0, which[None])[0]
        better = least < best[searched]
        won = searched[better]
        best[won], found[won] = least[better], _chosen(shares, which[better], found)
        left = (cut_off < best[searched]).nonzero().flatten()
        if not len(left):
            break
        if 2 * len(left) < len(searched):
            rows, searched = rows.only(left), searched[left]
    return found


def _rows(columns: Tensor, whole: AffineParams, importance: Tensor | None) -> _Rows:
    count = columns.shape[1]
    zero = (whole.zero_point - whole.dtype.qmin).to(torch.float32)
    if importance is not None:
        importance = (importance / importance.max()).to(torch.float32)
    levels = whole.dtype.qmax - whole.dtype.qmin
    return _Rows(columns, whole.scale.expand(count), zero.expand(count), levels, importance)


def _chosen(shares: Sequence[float], which: Tensor, like: Tensor) -> Tensor:
    return torch.tensor(shares, dtype=like.dtype, device=like.device)[which]
