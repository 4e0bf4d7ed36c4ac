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

from tico_observers import AffineParams

# Elementwise functions and sums over so few elements are one piece of work, whatever the number of threads.
_PIECE_COLUMNS = 31
_PIECE_ROWS = 1024
_BATCH = 8


@attrs.frozen(eq=False)
class _Rows:
    """The rows still searched, (columns, rows), with scale and zero point.

    `roots` (columns, ) are those of the weight of each column's squared error.
    """

    columns: Tensor
    scale: Tensor
    zero: Tensor
    levels: int
    roots: Tensor | None

    def only(self, kept: Tensor) -> _Rows:
        """Return some of the rows, by their index."""
        return attrs.evolve(self, columns=self.columns[:, kept], scale=self.scale[kept], zero=self.zero[kept])

    def errors(self, shares: Sequence[float]) -> tuple[Tensor, Tensor]:
        """Return the squared error (shares, rows) of each candidate, and what the last one cuts off."""
        pieces = range(0, self.columns.shape[1], _PIECE_ROWS)
        found = torch.cat([self._errors_of(start, shares) for start in pieces], 1).to(torch.float64)
        factors = torch.tensor([*shares, shares[-1]], dtype=torch.float64, device=found.device)
        found *= factors.square()[:, None]
        return found[:-1], found[-1]

    def _errors_of(self, start: int, shares: Sequence[float]) -> Tensor:
        """Return, in units of each candidate's scale, the errors of some rows, then what is cut off."""
        part = self.columns[:, start : start + _PIECE_ROWS]
        scale, zero = (each[start : start + _PIECE_ROWS] for each in (self.scale, self.zero))
        whole = torch.empty(3, _PIECE_COLUMNS, part.shape[1], dtype=scale.dtype, device=scale.device)
        sums = scale.new_zeros(len(shares) + 1, _PIECE_COLUMNS, part.shape[1])
        for low in range(0, len(part), _PIECE_COLUMNS):
            high = min(low + _PIECE_COLUMNS, len(part))
            steps, exact, rounded = whole[:, : high - low]
            torch.div(part[low:high], scale, out=steps)
            roots = None if self.roots is None else self.roots[low:high, None]
            for share, total in zip(shares, sums, strict=False):
                torch.add(zero, steps, alpha=1 / share, out=exact)
                _add_squares(total, torch.round(exact, out=rounded).clamp_(0, self.levels).sub_(exact), roots)
            cut_off = torch.clamp(exact, 0, self.levels, out=rounded).sub_(exact)
            _add_squares(sums[-1], cut_off, roots)
        return torch.stack([total.sum(0) for total in sums])


def _add_squares(sums: Tensor, errors: Tensor, roots: Tensor | None) -> None:
    weighted = errors if roots is None else errors.mul_(roots)
    sums[: len(errors)].addcmul_(weighted, weighted)


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
        least, share = best[searched], found[searched]
        for candidate, error in zip(shares, errors, strict=True):
            share = torch.where(error < least, candidate, share)
            least = torch.minimum(error, least)
        best[searched], found[searched] = least, share
        left = (cut_off < best[searched]).nonzero().flatten()
        if not len(left):
            break
        if 8 * len(left) < 7 * len(searched):
            rows, searched = rows.only(left), searched[left]
    return found


def _rows(columns: Tensor, whole: AffineParams, importance: Tensor | None) -> _Rows:
    count = columns.shape[1]
    zero = (whole.zero_point - whole.dtype.qmin).to(torch.float32)
    roots = None if importance is None else (importance / importance.max()).sqrt().to(torch.float32)
    levels = whole.dtype.qmax - whole.dtype.qmin
    return _Rows(columns, whole.scale.expand(count), zero.expand(count), levels, roots)
