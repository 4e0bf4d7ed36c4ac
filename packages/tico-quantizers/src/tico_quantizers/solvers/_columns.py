"""The columns of a weight, rounded one by one, each error made up for by those that follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from tico_config import GPTQConfig
from tico_observers.products import add_product, product, total, whole_columns
from tico_quantizers.solvers._factor import FACTOR_BLOCK, Factor, lower_inverse
from tico_quantizers.solvers._grids import GridRule
from tico_quantizers.solvers._group_grid import GroupGrid

_LEAF_COLUMNS = 16
_COPIED_ROWS = 32
LARGEST = torch.finfo(torch.float32).max

_Grid: TypeAlias = tuple[Tensor, Tensor, Tensor, Tensor | None]
"""Scale, the fewest and the most steps, and the offset if any, float32 (rows,), or (1,) for all rows.

Steps are counted from 0, or from the offset below it.
"""


class _Leaf:
    """A few columns, (columns, rows), that are rounded one by one.

    The tensors and the views of each column serve all leaves, one after the other.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self.target, self.steps, self.value, self.error = like.new_empty(4, width, like.shape[1])
        self.feedback, self.drift = like.new_zeros(2, width, width)
        self._columns = [
            (
                self.target[column],
                self.steps[column],
                self.value[column],
                self.error[column],
                self.target[column + 1 :],
                self.feedback[column + 1 :, column, None],
                self.drift[column + 1 :, column, None],
            )
            for column in range(width)
        ]

    def round(self, grids: Sequence[_Grid], *, wide: bool, drifts: bool) -> None:
        """Set `steps` and `value`, and `error` from the weight that it holds; a grid for each column.

        `wide` says that a value may be beyond the finite numbers, `drifts` that targets are carried on.
        """
        views = zip(self._columns, grids, strict=False)
        for (target, steps, value, error, later, share, drift), (scale, fewest, most, offset) in views:
            above = target if offset is None else torch.add(target, offset, out=steps)
            torch.div(above, scale, out=steps).round_().clamp_(fewest, most)
            torch.mul(steps, scale, out=value)
            if offset is not None:
                value.sub_(offset)
            if wide:
                value.clamp_(-LARGEST, LARGEST)
            later.addcmul_(share, error.sub_(value))
            if drifts:
                later.addcmul_(drift, target)


class Columns:
    """The columns of one weight as rows: `error` has that of those done, and the weight of the others.

    Done columns need no target any more, so its memory takes their `codes`. Behind the rows of the weight,
    as many of zeros make them whole (see `tico_observers.products`): they stay zeros, and change no grid.
    """

    def __init__(self, weight: Tensor, factor: Factor, config: GPTQConfig) -> None:
        (rows, size), static, hessian = weight.shape, config.static_groups, factor.hessian
        # Static groups are runs of the columns as they are given, others of the columns as they are handled.
        self.rule = GridRule(config, hessian.gram.diagonal() if static else hessian.diagonal())
        self.rows = rows
        self.error = whole_columns(transposed(weight))
        if hessian.order is not None:
            self.error = self.error[hessian.order]
        self._target = self.error.clone()
        self.codes = self._target.view(torch.int32)
        self.norms = torch.empty(2, size, dtype=torch.float64, device=weight.device)
        self.grids: list[GroupGrid] = []
        self.group_of = torch.arange(size, device=weight.device) // self.rule.group
        self._grids: list[_Grid] = []
        self._zero_points: list[Tensor] = []
        self._wide = False
        self._feedback = factor.feedback
        # With what the targets were when they were rounded.
        self._drift = None if factor.drift is None else (factor.drift, torch.empty_like(self.error))
        if static:
            self._fix_grids(weight.T, hessian.order)
        self._groups: list[int] = self.group_of.tolist()
        self._leaf = _Leaf(min(_LEAF_COLUMNS, self._span), self.error)

    @property
    def _span(self) -> int:
        """How many columns can be rounded without looking for another grid."""
        return len(self.error) if self.rule.config.static_groups else self.rule.span

    def _fix_grids(self, columns: Tensor, order: Tensor | None) -> None:
        for start in range(0, len(columns), self.rule.span):
            self._add_grids(columns[start : start + self.rule.span], start)
        if order is not None:
            self.group_of = self.group_of[order]

    def _add_grids(self, columns: Tensor, start: int) -> None:
        for grid in self.rule.grids(columns[:, : self.rows], start):
            self._add_grid(grid)

    def _add_grid(self, grid: GroupGrid) -> None:
        # Of the rows of zeros, any grid is right.
        missing = self.error.shape[1] - self.rows if len(grid.scale) > 1 else 0
        scale, zero_point = pad(grid.scale, (0, missing), value=1.0), pad(grid.zero_point, (0, missing))
        offset = None if grid.offset is None else pad(grid.offset, (0, missing))
        zero_point = zero_point.to(torch.float32)
        dtype = grid.dtype
        self.grids.append(grid)
        self._grids.append((scale, dtype.qmin - zero_point, dtype.qmax - zero_point, offset))
        self._zero_points.append(zero_point)
        self._wide |= float(grid.scale.max()) * (dtype.qmax - dtype.qmin) > LARGEST / 2

    def solve(self, start: int, stop: int) -> None:
        """Round the columns from `start` to `stop`, which all earlier columns have already corrected."""
        if start % self._span == 0 and stop == min(start + self._span, len(self.error)):
            self._open_span(start, stop)
        if stop - start <= min(_LEAF_COLUMNS, self._span):
            self._round(start, stop)
            return
        middle = self._split(start, stop)
        self.solve(start, middle)
        target = self._target[middle:stop]
        add_product(target, self._feedback[middle:stop, start:middle], self.error[start:middle])
        if self._drift is not None:
            drift, rounded = self._drift
            add_product(target, drift[middle:stop, start:middle], rounded[start:middle])
        self.solve(middle, stop)

    def _open_span(self, start: int, stop: int) -> None:
        if not self.rule.config.static_groups:
            self._add_grids(self._best(start, stop), start)

    def _best(self, start: int, stop: int) -> Tensor:
        """Return the values of the columns that are best for the codes of all earlier columns.

        These are what the paper's own recursion keeps in the place of the weight, and what a group's grid
        follows from; the targets lack what the columns' own distance from the weight will add to them. With
        C the block of U of these columns, they are w + (target - w) C⁻¹.
        """
        if not start:
            return self._target[:stop]
        weight = self.error[start:stop]
        moved = self._target[start:stop] - weight
        block = self._feedback[start:stop, start:stop]
        for low in range(0, len(moved), FACTOR_BLOCK):
            high = low + FACTOR_BLOCK
            moved[low:high] = product(lower_inverse(block[low:high, low:high], unit=True), moved[low:high])
            add_product(moved[high:], block[high:, low:high], moved[low:high], alpha=-1)
        return moved.add_(weight)

    def _split(self, start: int, stop: int) -> int:
        """Return a middle that lies on the border of a group if there is one, else on that of a leaf."""
        unit = self._span if stop - start > self._span else _LEAF_COLUMNS
        halves = -(-(stop - start) // unit) // 2
        return start + max(halves, 1) * unit

    def _round(self, start: int, stop: int) -> None:
        count, leaf = stop - start, self._leaf
        target, value, error = leaf.target[:count], leaf.value[:count], leaf.error[:count]
        target.copy_(self._target[start:stop])
        error.copy_(self.error[start:stop])
        leaf.feedback[:count, :count] = self._feedback[start:stop, start:stop]
        if self._drift is not None:
            leaf.drift[:count, :count] = self._drift[0][start:stop, start:stop]
        groups = self._groups[start:stop]
        leaf.round([self._grids[group] for group in groups], wide=self._wide, drifts=self._drift is not None)
        if self._drift is not None:
            self._drift[1][start:stop] = target
        self.error[start:stop] = error
        self.codes[start:stop] = leaf.steps[:count].add_(self._zero_points_of(groups))
        self.norms[0, start:stop] = column_norms(target.sub_(value))
        self.norms[1, start:stop] = column_norms(error)

    def width(self) -> float:
        """Return the squared width of the grid, summed over all elements."""
        scale = torch.stack([grid.scale for grid in self.grids]).to(torch.float64)
        steps = self.rule.dtype.qmax - self.rule.dtype.qmin
        return float(total(scale.square())) * self.rows / scale.shape[1] * self.rule.group * steps**2

    def _zero_points_of(self, groups: Sequence[int]) -> Tensor:
        """Return what broadcasts against columns of these groups."""
        if groups[0] == groups[-1] and not self.rule.config.static_groups:
            return self._zero_points[groups[0]]
        return torch.stack([self._zero_points[group] for group in groups])


def transposed(matrix: Tensor) -> Tensor:
    """Return a copy of the transpose, made a few rows at a time, which takes half the time of all at once."""
    rows, columns = matrix.shape
    copy = torch.empty(columns, rows, dtype=matrix.dtype, device=matrix.device)
    for start in range(0, rows, _COPIED_ROWS):
        copy[:, start : start + _COPIED_ROWS] = matrix[start : start + _COPIED_ROWS].T
    return copy


def column_norms(columns: Tensor) -> Tensor:
    """Return the norm of each column (columns, rows), float64."""
    norms: Tensor = torch.linalg.vector_norm(columns, dim=1, dtype=torch.float64)
    return norms
