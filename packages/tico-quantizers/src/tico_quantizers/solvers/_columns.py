"""The columns of a weight, rounded one by one, each error made up for by those that follow."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import pad

from tico_config import Element, GPTQConfig
from tico_observers.float_formats import encode_elements, round_elements_
from tico_observers.products import add_product, product, total, whole_columns
from tico_quantizers.solvers._factor import FACTOR_BLOCK, Factor, lower_inverse
from tico_quantizers.solvers._grids import GridRule
from tico_quantizers.solvers._group_grid import LARGEST, GroupGrid

_LEAF_COLUMNS = 16
_COPIED_ROWS = 32

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

    def round(self, grids: Sequence[_Grid], element: Element | None, *, wide: bool, drifts: bool) -> None:
        """Set `steps` and `value`, and `error` from the weight that it holds; a grid for each column.

        Steps are whole numbers, or floating-point elements where an `element` says which.
        `wide` says that a value may be beyond the finite numbers, `drifts` that targets are carried on.
        """
        views = zip(self._columns, grids, strict=False)
        for (target, steps, value, error, later, share, drift), (scale, fewest, most, offset) in views:
            above = target if offset is None else torch.add(target, offset, out=steps)
            torch.div(above, scale, out=steps)
            if element is None:
                steps.round_().clamp_(fewest, most)
            else:
                round_elements_(steps, element)
            torch.mul(steps, scale, out=value)
            if offset is not None:
                value.sub_(offset)
            if wide:
                value.clamp_(-LARGEST, LARGEST)
            later.addcmul_(share, error.sub_(value))
            if drifts:
                later.addcmul_(drift, target)


class Columns:
    """The columns of several weights side by side, stored as rows.

    `error` holds the errors of finished columns and the weights of the others. A finished column needs no
    target any more, so the memory of its target holds its `codes`.

    Rows of zeros fill up the rows of each weight to whole tiles (see `tico_observers.products`), so that a
    weight gets the same codes beside others as alone. They stay zeros and change no grid. `parts` are the
    places of each weight's rows; there are `grids` and `norms` for each of these.
    """

    def __init__(self, weights: Sequence[Tensor], factor: Factor, config: GPTQConfig) -> None:
        size, static, hessian = len(factor.hessian), config.static_groups, factor.hessian
        # Static groups are runs of the columns as they are given, others of the columns as they are handled.
        self.rule = GridRule(config, factor.costs(as_given=static))
        self.rules = [self.rule.for_weight(weight) for weight in weights]
        wholes = [whole_columns(transposed(weight)) for weight in weights]
        ends = list(itertools.accumulate(whole.shape[1] for whole in wholes))
        self._wholes = [slice(end - whole.shape[1], end) for end, whole in zip(ends, wholes, strict=True)]
        self.parts = [
            slice(each.start, each.start + len(weight))
            for each, weight in zip(self._wholes, weights, strict=True)
        ]
        self.error = torch.cat(wholes, 1) if len(wholes) > 1 else wholes[0]
        if hessian.order is not None:
            self.error = self.error[hessian.order]
        self._target = self.error.clone()
        self.codes = self._target.view(torch.int32)
        self.norms = self.error.new_empty(len(weights), 2, size, dtype=torch.float64)
        self.grids: list[list[GroupGrid]] = [[] for _ in weights]
        self.group_of = torch.arange(size, device=self.error.device) // self.rule.group
        self._grids: list[_Grid] = []
        self._zero_points: list[Tensor] = []
        self._wide = False
        self._feedback = factor.feedback
        # With what the targets were when they were rounded.
        self._drift = None if factor.drift is None else (factor.drift, torch.empty_like(self.error))
        if static:
            self._fix_grids(weights, hessian.order)
        self._groups: list[int] = self.group_of.tolist()
        self._leaf = _Leaf(min(_LEAF_COLUMNS, self._span), self.error)

    @property
    def _span(self) -> int:
        """How many columns can be rounded without looking for another grid."""
        return len(self.error) if self.rule.config.static_groups else self.rule.span

    def _fix_grids(self, weights: Sequence[Tensor], order: Tensor | None) -> None:
        size = len(self.error)
        for start in range(0, size, self.rule.span):
            self._add_grids([weight.T[start : start + self.rule.span] for weight in weights], start)
        if order is not None:
            self.group_of = self.group_of[order]

    def _add_grids(self, columns: Sequence[Tensor], start: int) -> None:
        """Add the grids of a span that begins at `start`, whose values are given for each weight."""
        found = [rule.grids(each, start) for rule, each in zip(self.rules, columns, strict=True)]
        for grids, more in zip(self.grids, found, strict=True):
            grids.extend(more)
        for beside in zip(*found, strict=True):
            self._add_grid(beside)

    def _add_grid(self, grids: Sequence[GroupGrid]) -> None:
        dtype = self.rule.dtype
        scale = self._beside([grid.scale for grid in grids], 1.0)
        zero_point = self._beside([grid.zero_point for grid in grids], 0).to(torch.float32)
        offsets = [grid.offset for grid in grids if grid.offset is not None]
        offset = self._beside(offsets, 0.0) if offsets else None
        self._grids.append((scale, dtype.qmin - zero_point, dtype.qmax - zero_point, offset))
        self._zero_points.append(zero_point)
        self._wide |= float(scale.max()) * self.rule.width > LARGEST / 2

    def _beside(self, values: Sequence[Tensor], rest: float) -> Tensor:
        """Return what broadcasts against a column, of `values` for the rows of each weight or for all."""
        if len(values) == 1 and self.rule.config.per_tensor:
            return values[0]
        # Of the rows of zeros, any grid is right.
        filled = [
            pad(each.expand(part.stop - part.start), (0, whole.stop - part.stop), value=rest)
            for each, part, whole in zip(values, self.parts, self._wholes, strict=True)
        ]
        return filled[0] if len(filled) == 1 else torch.cat(filled)

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
            best = self._best(start, stop)
            self._add_grids([best[:, part] for part in self.parts], start)

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
        grids, element = [self._grids[group] for group in groups], self.rule.element
        leaf.round(grids, element, wide=self._wide, drifts=self._drift is not None)
        if self._drift is not None:
            self._drift[1][start:stop] = target
        self.error[start:stop] = error
        steps = leaf.steps[:count]
        if element is None:
            self.codes[start:stop] = steps.add_(self._zero_points_of(groups))
        else:
            self.codes[start:stop] = encode_elements(steps, element)
        residual = target.sub_(value)
        for norms, whole in zip(self.norms, self._wholes, strict=True):
            norms[0, start:stop] = column_norms(residual[:, whole])
            norms[1, start:stop] = column_norms(error[:, whole])

    def error_of(self, number: int) -> Tensor:
        """Return the error of a weight (columns, rows), by its number."""
        return self.error[:, self.parts[number]]

    def width(self, number: int) -> float:
        """Return the squared width of the grid of a weight, summed over all of its elements."""
        scale = torch.stack([grid.scale for grid in self.grids[number]]).to(torch.float64)
        rows = self.parts[number].stop - self.parts[number].start
        width = self.rule.width
        return float(total(scale.square())) * rows / scale.shape[1] * self.rule.group * width**2

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
