"""GPTQ on tensors.

Frantar et al. 2022, arXiv 2210.17323. The feedback is that of the equivalent LDLQ (Chee et al. 2023,
arXiv 2307.13304, theorem 6): with the Hessian H = U D Uᵀ, U unit upper triangular, column j is rounded as

    q_j = Q(w_j + Σ_{i<j} (w_i - q_i) U_ij),

so that one factorization is all that is needed, and the loss is Σ_j D_j |target_j - q_j|². The grid of a
group follows from the weights that the recursion of the former paper holds when it comes to the group.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import ConfigError, DType, Found, GPTQConfig, NumericsError, PerTensor, Problem
from tico_observers import AffineParams, params_from_range, require_finite, require_float_tensor

# Products over at most 512 terms and factorizations below 160 columns do not depend on the thread count.
_FACTOR_BLOCK = 128
_PRODUCT_TERMS = 512
_LEAF_COLUMNS = 16
_DAMPING_STEPS = 6
_LARGEST = torch.finfo(torch.float32).max


@attrs.frozen(kw_only=True, eq=False)
class Solution:
    """A weight on a grid: ``dequantize()`` is ``(codes - zero_point) * scale`` of each column's group.

    `codes` is int32 (rows, columns); `scale` and `zero_point` are (rows, groups). `group_index` (columns,)
    names the group of each column where the groups are not runs of `group_size` columns. `loss` is
    tr((W - Q) H (W - Q)ᵀ) for the undamped H; `damping` is the share of the mean diagonal that was added;
    `rounded_only` says that no damping made H positive definite, so every column was rounded to nearest and
    `damping` is 0. A value beyond the finite numbers of float32 becomes the largest of them.
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
        return ((self.codes - zero_point).to(torch.float32) * scale).clamp_(-_LARGEST, _LARGEST)


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
    Where H is not positive definite, ten times the damping is tried, up to 10⁵ times.

    Raises:
        UnsupportedError: weight or Gram matrix are no dense floating-point tensors.
        NumericsError: they hold NaN or infinity, or the Gram matrix has a negative diagonal.
        ConfigError: the shapes do not fit each other, or an argument is none that `GPTQConfig` takes.

    >>> solution = quantize_weight(torch.eye(4), torch.eye(4), bits=4)
    >>> torch.equal(solution.dequantize(), torch.eye(4))
    True
    """
    config = GPTQConfig(
        bits=bits, group_size=group_size, symmetric=symmetric, act_order=act_order, damping=damping
    )
    weight, hessian = _matrices(weight, gram)
    diagonal = hessian.diagonal().clone()
    dead = diagonal == 0
    order = torch.argsort(diagonal, descending=True, stable=True) if act_order else None
    if order is not None:
        weight, dead, hessian = weight[:, order], dead[order], hessian[order][:, order]
    factor = _damped_factor(hessian, dead, config.damping)
    ignored = dead if not bool(dead.all()) else ~dead
    grid = _Grid(DType(bits, signed=symmetric), symmetric, group_size or weight.shape[1], ignored)
    solver = _Solver(weight, factor.feedback, grid)
    solver.solve(0, weight.shape[1])
    return solver.solution(factor, order, group_size, int(dead.sum()), solver.loss(factor, hessian))


def _matrices(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight as float32 and the Gram matrix as float64."""
    require_float_tensor(weight, "gptq")
    require_float_tensor(gram, "gptq")
    if weight.ndim != 2 or not weight.shape[1] or gram.shape != (weight.shape[1], weight.shape[1]):
        found = Found(f"{tuple(weight.shape)} and {tuple(gram.shape)}")
        expected = "(rows, columns) for the weight and (columns, columns) for the Gram matrix"
        raise ConfigError(Problem(field="weight", value=found, expected=expected))
    narrow, hessian = weight.detach().to(torch.float32), gram.detach().to(torch.float64)
    require_finite(narrow, "gptq", "weight")
    require_finite(hessian, "gptq", "gram")
    lowest = float(hessian.diagonal().min())
    if lowest < 0:
        found = Found(f"one with {lowest:g} on it")
        raise NumericsError(Problem(field="gram", value=found, expected="of a diagonal of at least 0"))
    return narrow, hessian


@attrs.frozen(eq=False)
class _Factor:
    """H + added * I = U D Uᵀ: `feedback` is U in float32, or I to round only, and `gains` is D."""

    feedback: Tensor
    gains: Tensor
    added: float
    damping: float
    rounded_only: bool


def _damped_factor(hessian: Tensor, dead: Tensor, damping: float) -> _Factor:
    """Return the factor of H with the smallest of the damping steps that makes it positive definite."""
    alive = hessian.diagonal()[~dead]
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
    return _Factor(unit, hessian.diagonal().clone(), 0.0, 0.0, True)


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
        self._weight = weight.T.contiguous()
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
            self._params.append(self._grid.params(self._best(start, stop), start))
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

    def _best(self, start: int, stop: int) -> Tensor:
        """Return the values of the columns that are best for the codes of all earlier columns.

        These are what the paper's own recursion keeps in the place of the weight, and what a group's grid
        follows from; the targets lack what the columns' own distance from the weight will add to them. With
        C the block of U of these columns, they are w + (target - w) C⁻¹.
        """
        moved = self._target[start:stop] - self._weight[start:stop]
        block = self._feedback[start:stop, start:stop]
        for low in range(0, len(moved) if start else 0, _FACTOR_BLOCK):
            high = low + _FACTOR_BLOCK
            solved: Tensor = torch.linalg.solve_triangular(
                block[low:high, low:high].T, moved[low:high], upper=False, unitriangular=True
            )
            moved[low:high] = solved
            moved[high:].addmm_(block[low:high, high:].T, solved, alpha=-1)
        return self._weight[start:stop] + moved

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
            value = (steps * params.scale).clamp_(-_LARGEST, _LARGEST)
            error = torch.sub(self._weight[column], value, out=self._error[column])
            if column + 1 < stop:
                share = self._feedback[column, column + 1 : stop]
                self._target[column + 1 : stop].addr_(share, error)

    def solution(
        self, factor: _Factor, order: Tensor | None, group_size: int | None, dead_columns: int, loss: float
    ) -> Solution:
        """Return the codes in the original order of the columns, with the loss."""
        require_finite(self._codes, "gptq", "target")
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

    def loss(self, factor: _Factor, hessian: Tensor) -> float:
        """Return tr((W - Q) H (W - Q)ᵀ), read off the residual of each target where that is exact."""
        if factor.rounded_only:
            return self._defined_loss(hessian)
        error = self._error.to(torch.float64)
        residual = self._target.to(torch.float64) - (self._weight.to(torch.float64) - error)
        damped = float((residual.square().sum(1) * factor.gains).sum())
        loss = damped - factor.added * float(error.square().sum(1).sum())
        # The residual is a float32 number: what little is left of a large difference would be its rounding.
        return loss if loss > damped / 4 else self._defined_loss(hessian)

    def _defined_loss(self, hessian: Tensor) -> float:
        """Return the loss as it is defined, by blocks on and above the diagonal of H."""
        error = self._error.to(torch.float64)
        total = 0.0
        for low in range(0, len(error), _PRODUCT_TERMS):
            rows = slice(low, low + _PRODUCT_TERMS)
            for start in range(low, len(error), _PRODUCT_TERMS):
                columns = slice(start, start + _PRODUCT_TERMS)
                part = float((error[rows] * (hessian[rows, columns] @ error[columns])).sum(1).sum())
                total += part if start == low else 2 * part
        return max(total, 0.0)
