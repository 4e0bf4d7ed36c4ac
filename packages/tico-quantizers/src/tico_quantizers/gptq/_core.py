"""GPTQ on tensors.

Frantar et al. 2022, arXiv 2210.17323. The feedback is that of the equivalent LDLQ (Chee et al. 2023,
arXiv 2307.13304, theorem 6): with the Hessian H = U D Uᵀ, U unit upper triangular, column j is rounded as

    q_j = Q(w_j + Σ_{i<j} (w_i - q_i) U_ij),

so that one factorization is all that is needed, and the loss is Σ_j D_j |target_j - q_j|².
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import ConfigError, DType, Found, PerTensor, Problem
from tico_observers import AffineParams, params_from_range, require_finite

# Products over at most 512 terms and factorizations below 160 columns do not depend on the thread count.
_FACTOR_BLOCK = 128
_PRODUCT_TERMS = 512
_LEAF_COLUMNS = 16
_DAMPING_STEPS = 6


@attrs.frozen(kw_only=True, eq=False)
class Solution:
    """A weight on a grid: ``dequantize()`` is ``(codes - zero_point) * scale`` of each column's group.

    `codes` is int32 (rows, columns); `scale` and `zero_point` are (rows, groups). `group_index` (columns,)
    names the group of each column where the groups are not runs of `group_size` columns. `loss` is
    tr((W - Q) H (W - Q)ᵀ) for the undamped H; `damping` is the share of the mean diagonal that was added;
    `rounded_only` says that no damping made H positive definite, so every column was rounded to nearest.
    """

    codes: Tensor
    scale: Tensor
    zero_point: Tensor
    dtype: DType
    group_size: int | None
    group_index: Tensor | None
    loss: float
    damping: float
    dead_columns: int
    rounded_only: bool = False

    def dequantize(self) -> Tensor:
        """Return the quantized weight, float32 (rows, columns)."""
        columns = self.codes.shape[1]
        index = self.group_index
        if index is None:
            index = torch.arange(columns, device=self.codes.device) // (self.group_size or max(columns, 1))
        scale, zero_point = self.scale[:, index], self.zero_point[:, index]
        return (self.codes - zero_point).to(torch.float32) * scale


def quantize_weight(
    weight: Tensor,
    gram: Tensor,
    *,
    bits: int,
    group_size: int | None = None,
    symmetric: bool = False,
    act_order: bool = False,
    damping: float = 0.01,
) -> Solution:
    """Return `weight` (rows, columns) rounded with feedback by `gram` (columns, columns) = XᵀX.

    Columns whose inputs were always zero are rounded to nearest and do not widen the grid of the others.

    Raises:
        NumericsError: weight or Gram matrix hold NaN or infinity.
        ConfigError: the shapes do not fit each other.

    >>> solution = quantize_weight(torch.eye(4), torch.eye(4), bits=4)
    >>> torch.equal(solution.dequantize(), torch.eye(4))
    True
    """
    _require_matrices(weight, gram)
    dtype = DType(bits, signed=symmetric)
    hessian = gram.detach().to(torch.float64)
    diagonal = hessian.diagonal().clone()
    dead = diagonal <= 0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    if order is not None:
        weight, dead, hessian = weight[:, order], dead[order], hessian[order][:, order]
    factor = _damped_factor(hessian, dead, damping)
    grid = _Grid(dtype, symmetric, group_size or weight.shape[1], dead if not bool(dead.all()) else ~dead)
    solver = _Solver(weight, factor.feedback, grid)
    solver.solve(0, weight.shape[1])
    loss = solver.plain_loss(hessian) if factor.rounded_only else solver.loss(factor)
    return solver.solution(factor, order, group_size, int(dead.sum()), loss)


def _require_matrices(weight: Tensor, gram: Tensor) -> None:
    if weight.ndim != 2 or gram.shape != (weight.shape[1], weight.shape[1]):
        found = Found(f"{tuple(weight.shape)} and {tuple(gram.shape)}")
        expected = "(rows, columns) for the weight and (columns, columns) for the Gram matrix"
        raise ConfigError(Problem(field="weight", value=found, expected=expected))
    require_finite(weight, "gptq", "weight")
    require_finite(gram, "gptq", "gram")


@attrs.frozen(eq=False)
class _Factor:
    """H + added * I = U D Uᵀ: `feedback` is U in float32, `gains` is D; without feedback U is I."""

    feedback: Tensor
    gains: Tensor
    added: float
    damping: float
    rounded_only: bool


def _damped_factor(hessian: Tensor, dead: Tensor, damping: float) -> _Factor:
    """Return the factor of H with the smallest of the damping steps that makes it positive definite."""
    diagonal = hessian.diagonal()
    alive = diagonal[~dead]
    mean = float(alive.sum() / max(len(alive), 1)) or 1.0
    share = damping
    for _ in range(_DAMPING_STEPS):
        damped = hessian.clone()
        damped.diagonal().add_(share * mean)
        upper = _upper_factor(damped)
        if upper is not None:
            root = upper.diagonal().clone()
            return _Factor((upper / root).to(torch.float32), root.square(), share * mean, share, False)
        share *= 10
    unit = torch.eye(len(hessian), dtype=torch.float32, device=hessian.device)
    return _Factor(unit, diagonal.clone(), 0.0, share, True)


def _upper_factor(hessian: Tensor) -> Tensor | None:
    """Return the upper triangular R with H = R Rᵀ, or None where H is not positive definite."""
    size = hessian.shape[0]
    padded = size + -size % _FACTOR_BLOCK
    work = torch.eye(padded, dtype=hessian.dtype, device=hessian.device)
    work[:size, :size] = hessian.flip(0, 1)
    for start in range(0, padded, _FACTOR_BLOCK):
        stop = start + _FACTOR_BLOCK
        corner, info = torch.linalg.cholesky_ex(work[start:stop, start:stop])
        if int(info) or not bool(torch.isfinite(corner).all()):
            return None
        work[start:stop, start:stop] = corner
        unit = torch.eye(_FACTOR_BLOCK, dtype=hessian.dtype, device=hessian.device)
        inverse: Tensor = torch.linalg.solve_triangular(corner, unit, upper=False)
        panel = work[stop:, start:stop] @ inverse.T
        work[stop:, start:stop] = panel
        for column in range(stop, padded, _FACTOR_BLOCK):
            end = column + _FACTOR_BLOCK
            work[column:, column:end] -= panel[column - stop :] @ panel[column - stop : end - stop].T
    return work[:size, :size].tril_().flip(0, 1)


@attrs.frozen(eq=False)
class _Grid:
    """How the grid of a group follows from its columns; `ignored` columns do not widen it."""

    dtype: DType
    symmetric: bool
    group: int
    ignored: Tensor

    def params(self, columns: Tensor, start: int) -> AffineParams:
        """Return a grid for each row from `columns` (columns, rows), the first of which is number `start`."""
        counted = columns[~self.ignored[start : start + len(columns)]]
        if not len(counted):
            counted = columns
        return params_from_range(
            counted.amin(0), counted.amax(0), self.dtype, symmetric=self.symmetric, granularity=PerTensor()
        )


class _Solver:
    """The columns of one weight, transposed so that each is contiguous."""

    def __init__(self, weight: Tensor, feedback: Tensor, grid: _Grid) -> None:
        self._weight = weight.detach().to(torch.float32).T.contiguous()
        self._target = self._weight.clone()
        self._error = torch.zeros_like(self._weight)
        self._codes = torch.zeros_like(self._weight)
        self._feedback = feedback
        self._grid = grid
        self._params: list[AffineParams] = []

    def solve(self, start: int, stop: int) -> None:
        """Round the columns from `start` to `stop`, which all earlier columns have already corrected."""
        if stop <= start:
            return
        group = self._grid.group
        if start % group == 0 and stop == min(start + group, len(self._weight)):
            self._params.append(self._grid.params(self._target[start:stop], start))
        if stop - start <= min(_LEAF_COLUMNS, group):
            self._round(start, stop)
            return
        middle = self._split(start, stop)
        self.solve(start, middle)
        for low in range(start, middle, _PRODUCT_TERMS):
            high = min(low + _PRODUCT_TERMS, middle)
            share = self._feedback[low:high, middle:stop].T
            self._target[middle:stop].addmm_(share, self._error[low:high])
        self.solve(middle, stop)

    def _split(self, start: int, stop: int) -> int:
        """Return a middle that lies on the border of a group if there is one, else on that of a leaf."""
        unit = self._grid.group if stop - start > self._grid.group else _LEAF_COLUMNS
        halves = -(-(stop - start) // unit) // 2
        return start + max(halves, 1) * unit

    def _round(self, start: int, stop: int) -> None:
        params = self._params[-1]
        zero_point = params.zero_point.to(torch.float32)
        low, high = params.dtype.qmin - zero_point, params.dtype.qmax - zero_point
        for column in range(start, stop):
            steps = (self._target[column] / params.scale).round_().clamp_(low, high)
            self._codes[column] = steps + zero_point
            error = torch.sub(self._weight[column], steps * params.scale, out=self._error[column])
            if column + 1 < stop:
                share = self._feedback[column, column + 1 : stop]
                self._target[column + 1 : stop].addr_(share, error)

    def solution(
        self, factor: _Factor, order: Tensor | None, group_size: int | None, dead_columns: int, loss: float
    ) -> Solution:
        """Return the codes in the original order of the columns, with the loss."""
        columns = len(self._weight)
        back = None if order is None else torch.argsort(order)
        codes = self._codes if back is None else self._codes[back]
        groups = torch.arange(columns, device=codes.device) // self._grid.group
        rows = self._weight.shape[1]
        empty = self._weight.new_zeros(rows)
        return Solution(
            codes=codes.T.to(torch.int32),
            scale=torch.stack([empty, *(params.scale for params in self._params)], 1)[:, 1:],
            zero_point=torch.stack([empty.int(), *(p.zero_point for p in self._params)], 1)[:, 1:],
            dtype=self._grid.dtype,
            group_size=group_size,
            group_index=None if back is None or group_size is None else groups[back].to(torch.int32),
            loss=loss,
            damping=factor.damping,
            dead_columns=dead_columns,
            rounded_only=factor.rounded_only,
        )

    def loss(self, factor: _Factor) -> float:
        """Return tr((W - Q) H (W - Q)ᵀ), read off the residual of each column's target."""
        error = self._error.to(torch.float64)
        residual = self._target.to(torch.float64) - (self._weight.to(torch.float64) - error)
        added = factor.added * float(error.square().sum(1).sum())
        return max(float((residual.square().sum(1) * factor.gains).sum()) - added, 0.0)

    def plain_loss(self, hessian: Tensor) -> float:
        """Return tr((W - Q) H (W - Q)ᵀ) as it is defined."""
        error = self._error.to(torch.float64)
        return float((error * (hessian @ error)).sum(1).sum())
