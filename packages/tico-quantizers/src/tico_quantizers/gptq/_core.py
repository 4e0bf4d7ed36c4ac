"""GPTQ on tensors.

Frantar et al. 2022, arXiv 2210.17323. The feedback is that of the equivalent LDLQ (Chee et al. 2023,
arXiv 2307.13304, theorem 6): with the Hessian H = U D Uᵀ, U unit upper triangular, column j is rounded as

    q_j = Q(w_j + Σ_{i<j} (w_i - q_i) U_ij),

so that one factorization is all that is needed, and the loss is Σ_j D_j |target_j - q_j|². The grid of a
group follows from the weights that the recursion of the former paper holds when it comes to the group.
"""

from __future__ import annotations

import math

import attrs
import torch
from torch import Tensor

from tico_config import ConfigError, DType, Found, GPTQConfig, NumericsError, PerTensor, Problem
from tico_observers import AffineParams, params_from_range, require_finite, require_float_tensor

# Products over at most 512 terms and factorizations below 160 columns do not depend on the thread count.
_FACTOR_BLOCK = 64
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
    weight, gram = _matrices(weight, gram)
    order = torch.argsort(gram.diagonal(), descending=True, stable=True) if act_order else None
    hessian = _Hessian(gram, order)
    factor = _damped_factor(hessian, config.damping)
    grid = _Grid(DType(bits, signed=symmetric), symmetric, group_size or len(gram), hessian.ignored())
    solver = _Solver(weight.T if order is None else weight.T[order], factor.feedback, grid)
    solver.solve(0, len(gram))
    return solver.solution(factor, hessian, group_size)


def _matrices(weight: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Return the weight as float32 and the Gram matrix."""
    require_float_tensor(weight, "gptq")
    require_float_tensor(gram, "gptq")
    if weight.ndim != 2 or not weight.shape[1] or gram.shape != (weight.shape[1], weight.shape[1]):
        found = Found(f"{tuple(weight.shape)} and {tuple(gram.shape)}")
        expected = "(rows, columns) for the weight and (columns, columns) for the Gram matrix"
        raise ConfigError(Problem(field="weight", value=found, expected=expected))
    narrow, gram = weight.detach().to(torch.float32), gram.detach()
    _require_finite(narrow, "weight")
    _require_finite(gram, "gram")
    lowest = float(gram.diagonal().min())
    if lowest < 0:
        found = Found(f"one with {lowest:g} on it")
        raise NumericsError(Problem(field="gram", value=found, expected="of a diagonal of at least 0"))
    return narrow, gram


def _require_finite(matrix: Tensor, name: str) -> None:
    # A finite sum has finite terms; only where it is not are they looked at one by one, which takes longer.
    if not bool(torch.isfinite(matrix.sum())):
        require_finite(matrix, "gptq", name)


@attrs.frozen(eq=False)
class _Hessian:
    """The Gram matrix with its columns in the order in which they are rounded, float64 where it is read."""

    gram: Tensor
    order: Tensor | None

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.gram)

    def block(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """Return a copy of the rows from `start` to `stop` of the columns from `low` to `high`."""
        if self.order is None:
            return self.gram[start:stop, low:high].to(torch.float64, copy=True)
        rows = self.gram.index_select(0, self.order[start:stop])
        return rows.index_select(1, self.order[low:high]).to(torch.float64)

    def diagonal(self) -> Tensor:
        """Return the diagonal of H."""
        diagonal = self.gram.diagonal().to(torch.float64)
        return diagonal if self.order is None else diagonal[self.order]

    def dead(self) -> Tensor:
        """Return which columns belong to inputs that were always zero."""
        return self.diagonal() == 0

    def ignored(self) -> Tensor | None:
        """Return which columns do not widen the grid of the others, None if all count."""
        dead = self.dead()
        return dead if bool(dead.any()) and not bool(dead.all()) else None


@attrs.frozen(eq=False)
class _Factor:
    """H + added * I = U D Uᵀ: `feedback` is Uᵀ in float32, or I to round only, and `gains` is D.

    What `feedback` holds above its diagonal is undefined.
    """

    feedback: Tensor
    gains: Tensor
    added: float
    damping: float
    rounded_only: bool


def _damped_factor(hessian: _Hessian, damping: float) -> _Factor:
    """Return the factor of H with the smallest of the damping steps that makes it positive definite."""
    diagonal = hessian.diagonal()
    alive = diagonal[diagonal != 0]
    mean = float(alive.sum() / max(len(alive), 1)) or 1.0
    share = damping
    for _ in range(_DAMPING_STEPS):
        factor = _factor(hessian, share * mean)
        if factor is not None:
            return _Factor(*factor, share * mean, share, False)
        share *= 10
    unit = torch.eye(len(hessian), dtype=torch.float32, device=diagonal.device)
    return _Factor(unit, diagonal.clone(), 0.0, 0.0, True)


def _factor(hessian: _Hessian, added: float) -> tuple[Tensor, Tensor] | None:
    """Return Uᵀ in float32 and D of H + added * I = U D Uᵀ, or None where that is not positive definite.

    Computed from the last block of rows to the first, each from all blocks after it, in terms of R = U √D.
    """
    size = len(hessian)
    lower, feedback = (_square(size, dtype, hessian.gram) for dtype in (torch.float64, torch.float32))
    for start in reversed(range(0, size, _FACTOR_BLOCK)):
        stop = min(start + _FACTOR_BLOCK, size)
        panel = hessian.block(start, stop, 0, stop)
        panel[:, start:].diagonal().add_(added)
        for low in range(stop, size, _PRODUCT_TERMS):
            later = lower[low : low + _PRODUCT_TERMS]
            panel.addmm_(later[:, start:stop].T, later[:, :stop], alpha=-1)
        corner, info = torch.linalg.cholesky_ex(panel[:, start:].flip(0, 1))
        if int(info) or not bool(torch.isfinite(corner).all()):
            return None
        torch.mm(_lower_inverse(corner).flip(0, 1), panel[:, :start], out=lower[start:stop, :start])
        lower[start:stop, start:stop] = corner.flip(0, 1).T
        root = lower.diagonal()[start:stop]
        torch.div(lower[start:stop, :stop], root[:, None], out=feedback[start:stop, :stop])
    return feedback, lower.diagonal().square()


def _square(size: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    # Rows a power of two apart would compete for the same lines of the cache.
    return torch.empty(size, size + 8, dtype=dtype, device=like.device)[:, :size]


def _lower_inverse(matrix: Tensor, *, unit: bool = False) -> Tensor:
    eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
    inverse: Tensor = torch.linalg.solve_triangular(matrix, eye, upper=False, unitriangular=unit)
    return inverse


@attrs.frozen(eq=False)
class _Grid:
    """How the grid of a group follows from its columns; `ignored` columns do not widen it."""

    dtype: DType
    symmetric: bool
    group: int
    ignored: Tensor | None

    def params(self, columns: Tensor, start: int) -> AffineParams:
        """Return a grid for each row from `columns` (columns, rows), the first of which is number `start`."""
        if self.ignored is not None:
            counted = columns[~self.ignored[start : start + len(columns)]]
            columns = counted if len(counted) else columns
        return params_from_range(
            columns.amin(0), columns.amax(0), self.dtype, symmetric=self.symmetric, granularity=PerTensor()
        )


class _Leaf:
    """A few columns of one group, (columns, rows), in units of its scale, that are rounded one by one.

    The tensors and the views of each column serve all leaves, one after the other.
    """

    def __init__(self, width: int, like: Tensor) -> None:
        self.target, self.steps, self.error = like.new_empty(3, width, like.shape[1])
        self.feedback = like.new_zeros(width, width)
        self._columns = [
            (
                self.target[column],
                self.steps[column],
                self.error[column],
                self.target[column + 1 :],
                self.feedback[column + 1 :, column, None],
            )
            for column in range(width)
        ]

    def round(self, count: int, low: Tensor, high: Tensor) -> None:
        """Set `steps`, and `error` from the weight that it holds."""
        for target, steps, error, later, share in self._columns[:count]:
            torch.round(target, out=steps).clamp_(low, high)
            error.sub_(steps)
            later.addcmul_(share, error)


class _Solver:
    """The columns of one weight as rows: the error of those done, the weight of the others.

    Done columns need no target any more, so its memory takes their codes.
    """

    def __init__(self, columns: Tensor, feedback: Tensor, grid: _Grid) -> None:
        self._rows = columns.shape[1]
        # The product of a matrix and a single vector depends on the thread count: a row of zeros prevents it.
        self._error = columns.new_empty(len(columns), max(self._rows, 2))
        self._error[:, : self._rows] = columns
        self._error[:, self._rows :] = 0
        self._target = self._error.clone()
        self._codes = self._target.view(torch.int32)
        self._norms = torch.empty(2, len(columns), dtype=torch.float64, device=columns.device)
        self._feedback = feedback
        self._grid = grid
        self._leaf = _Leaf(min(_LEAF_COLUMNS, grid.group), self._error)
        self._params: list[AffineParams] = []

    def solve(self, start: int, stop: int) -> None:
        """Round the columns from `start` to `stop`, which all earlier columns have already corrected."""
        group = self._grid.group
        if start % group == 0 and stop == min(start + group, len(self._error)):
            self._params.append(self._grid.params(self._best(start, stop), start))
        if stop - start <= min(_LEAF_COLUMNS, group):
            self._round(start, stop)
            return
        middle = self._split(start, stop)
        self.solve(start, middle)
        for low in range(start, middle, _PRODUCT_TERMS):
            high = min(low + _PRODUCT_TERMS, middle)
            self._target[middle:stop].addmm_(self._feedback[middle:stop, low:high], self._error[low:high])
        self.solve(middle, stop)

    def _best(self, start: int, stop: int) -> Tensor:
        """Return the values of the columns that are best for the codes of all earlier columns.

        These are what the paper's own recursion keeps in the place of the weight, and what a group's grid
        follows from; the targets lack what the columns' own distance from the weight will add to them. With
        C the block of U of these columns, they are w + (target - w) C⁻¹.
        """
        if not start:
            return self._target[:stop]
        weight = self._error[start:stop]
        moved = self._target[start:stop] - weight
        block = self._feedback[start:stop, start:stop]
        for low in range(0, len(moved), _FACTOR_BLOCK):
            high = low + _FACTOR_BLOCK
            moved[low:high] = _lower_inverse(block[low:high, low:high], unit=True) @ moved[low:high]
            moved[high:].addmm_(block[high:, low:high], moved[low:high], alpha=-1)
        return moved.add_(weight)

    def _split(self, start: int, stop: int) -> int:
        """Return a middle that lies on the border of a group if there is one, else on that of a leaf."""
        unit = self._grid.group if stop - start > self._grid.group else _LEAF_COLUMNS
        halves = -(-(stop - start) // unit) // 2
        return start + max(halves, 1) * unit

    def _round(self, start: int, stop: int) -> None:
        count, leaf, params = stop - start, self._leaf, self._params[-1]
        target, steps, error = leaf.target[:count], leaf.steps[:count], leaf.error[:count]
        torch.div(self._target[start:stop], params.scale, out=target)
        # A dead column may be infinitely many steps away, but its share of 0 of that must stay 0.
        torch.div(self._error[start:stop], params.scale, out=error).clamp_(-_LARGEST, _LARGEST)
        leaf.feedback[:count, :count] = self._feedback[start:stop, start:stop]
        zero_point = params.zero_point.to(torch.float32)
        leaf.round(count, params.dtype.qmin - zero_point, params.dtype.qmax - zero_point)
        self._norms[0, start:stop] = _norms(target.sub_(steps).mul_(params.scale))
        self._codes[start:stop] = torch.add(steps, zero_point, out=target)
        value = steps.mul_(params.scale).clamp_(-_LARGEST, _LARGEST)
        self._norms[1, start:stop] = _norms(self._error[start:stop].sub_(value))

    def solution(self, factor: _Factor, hessian: _Hessian, group_size: int | None) -> Solution:
        """Return the codes in the original order of the columns, with the loss."""
        back = None if hessian.order is None else torch.argsort(hessian.order)
        groups = torch.arange(len(hessian), device=self._codes.device) // self._grid.group
        return Solution(
            loss=self._loss(factor, hessian),
            codes=(self._codes if back is None else self._codes[back]).T[: self._rows],
            scale=torch.stack([params.scale for params in self._params], 1)[: self._rows],
            zero_point=torch.stack([params.zero_point for params in self._params], 1)[: self._rows],
            dtype=self._grid.dtype,
            group_size=group_size,
            group_index=None if back is None or group_size is None else groups[back].to(torch.int32),
            damping=factor.damping,
            dead_columns=int(hessian.dead().sum()),
            rounded_only=factor.rounded_only,
        )

    def _loss(self, factor: _Factor, hessian: _Hessian) -> float:
        """Return tr((W - Q) H (W - Q)ᵀ), read off the residual of each target where that is exact."""
        residuals, errors = self._norms.square()
        damped = float((residuals * factor.gains).sum())
        if math.isnan(damped):
            require_finite(residuals, "gptq", "target")
        error = float(errors.sum())
        loss = damped - factor.added * error
        # A residual is a float32 number as wide as the grid, less its code: what little is left
        # of a large difference would be its rounding.
        exact = loss > damped / 4 and error > 2**-40 * self._width() and not factor.rounded_only
        return loss if exact else self._defined_loss(hessian)

    def _width(self) -> float:
        """Return the squared width of the grid, summed over all elements."""
        scale = torch.stack([params.scale for params in self._params]).to(torch.float64)
        steps = self._grid.dtype.qmax - self._grid.dtype.qmin
        return float(scale.square().sum(1).sum()) * self._grid.group * steps**2

    def _defined_loss(self, hessian: _Hessian) -> float:
        """Return the loss as it is defined, by blocks on and above the diagonal of H."""
        error = self._error.to(torch.float64)
        total = 0.0
        for low in range(0, len(error), _PRODUCT_TERMS):
            high = low + _PRODUCT_TERMS
            for start in range(low, len(error), _PRODUCT_TERMS):
                stop = start + _PRODUCT_TERMS
                moved = hessian.block(low, high, start, stop) @ error[start:stop]
                part = float((error[low:high] * moved).sum(1).sum())
                total += part if start == low else 2 * part
        return max(total, 0.0)


def _norms(columns: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(columns, dim=1, dtype=torch.float64)
    return norms
