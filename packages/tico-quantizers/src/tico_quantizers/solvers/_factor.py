"""The factor of a damped Hessian, computed by blocks so that it does not depend on the number of threads."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import GPTQConfig
from tico_observers.products import add_product, product, total

# Factors of so many columns, and triangular systems of so many unknowns, do not depend on the thread count.
FACTOR_BLOCK = 64
_SOLVED = 16
_DAMPING_STEPS = 6


@attrs.frozen(eq=False)
class Hessian:
    """The Gram matrix with its columns in the order in which they are rounded, float64 where it is read."""

    gram: Tensor
    order: Tensor | None

    def __len__(self) -> int:
        """Return the number of columns."""
        return len(self.gram)

    def block(self, start: int, stop: int, low: int, high: int) -> Tensor:
        """Return a copy of the rows from `start` to `stop` of the columns from `low` to `high`."""
        return self.block_of(self.gram, start, stop, low, high)

    def block_of(self, matrix: Tensor, start: int, stop: int, low: int, high: int) -> Tensor:
        """Return the same block of another `matrix` over the same columns, row by row in memory."""
        if self.order is None:
            block = matrix[start:stop, low:high]
        else:
            rows = matrix.index_select(0, self.order[start:stop])
            block = rows.index_select(1, self.order[low:high])
        return block.to(torch.float64, copy=True, memory_format=torch.contiguous_format)

    def diagonal(self) -> Tensor:
        """Return the diagonal of H."""
        diagonal = self.gram.diagonal().to(torch.float64)
        return diagonal if self.order is None else diagonal[self.order]

    def dead(self) -> Tensor:
        """Return which columns belong to inputs that were always zero."""
        return self.diagonal() == 0


@attrs.frozen(eq=False)
class Factor:
    """H + added * I = U D Uᵀ: `feedback` is Uᵀ in float32, or I to round only, and `gains` is D.

    One factor serves all weights that are rounded by the same H. `drift` is what carries on the difference of
    inputs, see `_drift`. What `feedback` and `drift` hold above their diagonals is undefined.
    """

    hessian: Hessian
    feedback: Tensor
    drift: Tensor | None
    gains: Tensor
    added: float
    damping: float
    rounded_only: bool

    @property
    def is_plain(self) -> bool:
        """Whether the targets are those of GPTQ, and nothing else."""
        return self.drift is None and not self.rounded_only

    def costs(self, *, as_given: bool) -> Tensor:
        """Return what an error of each column costs once later ones have made up for it, in their order.

        It is 0 for inputs that were always zero. With `as_given`, columns are in the order of the weight.
        """
        costs = self.gains.masked_fill(self.hessian.dead(), 0.0)
        order = self.hessian.order
        if order is None or not as_given:
            return costs
        return torch.empty_like(costs).index_copy_(0, order, costs)


def damped_factor(hessian: Hessian, config: GPTQConfig, cross_gram: Tensor | None) -> Factor:
    """Return the factor of H with the smallest of the damping steps that makes it positive definite."""
    diagonal = hessian.diagonal()
    alive = diagonal[diagonal != 0]
    size = _reference(alive, config.damping_reference)
    share = config.damping
    for _ in range(_DAMPING_STEPS):
        factors = _factor(hessian, share * size)
        if factors is not None:
            lower, feedback = factors
            drift = None if cross_gram is None else _drift(hessian, cross_gram, lower)
            return Factor(hessian, feedback, drift, lower.diagonal().square(), share * size, share, False)
        share *= 10
    return rounding_only(hessian)


def rounding_only(hessian: Hessian) -> Factor:
    """Return the factor that makes up for nothing, so that every column is rounded to nearest."""
    diagonal = hessian.diagonal()
    unit = torch.eye(len(hessian), dtype=torch.float32, device=diagonal.device)
    return Factor(hessian, unit, None, diagonal.clone(), 0.0, 0.0, True)


def _reference(alive: Tensor, kind: str) -> float:
    """Return the size of the diagonal that the damping is a share of, 1 where nothing is alive."""
    if not len(alive):
        return 1.0
    return float(alive.median() if kind == "median" else total(alive) / len(alive)) or 1.0


def _factor(hessian: Hessian, added: float) -> tuple[Tensor, Tensor] | None:
    """Return (U √D)ᵀ, and Uᵀ in float32, of H + added * I = U D Uᵀ, or None if it is not positive definite.

    Computed from the last block of rows to the first, each from all blocks after it, in terms of R = U √D.
    """
    size = len(hessian)
    lower, feedback = (square(size, dtype, hessian.gram) for dtype in (torch.float64, torch.float32))
    for start in reversed(range(0, size, FACTOR_BLOCK)):
        stop = min(start + FACTOR_BLOCK, size)
        panel = hessian.block(start, stop, 0, stop)
        panel[:, start:].diagonal().add_(added)
        add_product(panel, lower[stop:, start:stop].T, lower[stop:, :stop], alpha=-1)
        corner, info = torch.linalg.cholesky_ex(panel[:, start:].flip(0, 1))
        if int(info) or not bool(torch.isfinite(corner).all()):
            return None
        add_product(lower[start:stop, :start].zero_(), lower_inverse(corner).flip(0, 1), panel[:, :start])
        lower[start:stop, start:stop] = corner.flip(0, 1).T
        root = lower.diagonal()[start:stop]
        torch.div(lower[start:stop, :stop], root[:, None], out=feedback[start:stop, :stop])
        if not bool(torch.isfinite(feedback[start:stop, :stop].sum(1)).all()):
            return None
    return lower, feedback


def _drift(hessian: Hessian, cross_gram: Tensor, lower: Tensor) -> Tensor:
    """Return Sᵀ in float32, with S the part above the diagonal of C U⁻ᵀ D⁻¹, C = (X̃ - X)ᵀ X.

    Where P = S U⁻¹ is what arXiv 2504.02692 adds to all later weights, target by target, S does so to the
    targets themselves. With `lower` = Rᵀ and Z = C R⁻ᵀ, computed like the factor, it is Z √D⁻¹.
    """
    size = len(hessian)
    solved, drift = (square(size, dtype, hessian.gram) for dtype in (torch.float64, torch.float32))
    for start in reversed(range(0, size, FACTOR_BLOCK)):
        stop = min(start + FACTOR_BLOCK, size)
        panel = hessian.block_of(cross_gram.T, start, stop, 0, stop)
        add_product(panel, lower[stop:, start:stop].T, solved[stop:, :stop], alpha=-1)
        corner = lower[start:stop, start:stop]
        solved[start:stop, :stop] = product(lower_inverse(corner).T, panel)
        torch.div(solved[start:stop, :stop], corner.diagonal()[:, None], out=drift[start:stop, :stop])
    return drift


def square(size: int, dtype: torch.dtype, like: Tensor) -> Tensor:
    """Return an uninitialized square matrix whose rows are not a power of two apart.

    Such rows would compete for the same lines of the cache. They are whole lines of it apart, so that results
    can be written there.
    """
    return torch.empty(size, size + 16 + -size % 16, dtype=dtype, device=like.device)[:, :size]


def lower_inverse(matrix: Tensor, *, unit: bool = False) -> Tensor:
    """Return the inverse of a lower triangular matrix of at most a block; `unit` is its diagonal all ones."""
    size = len(matrix)
    if size < FACTOR_BLOCK:
        whole = torch.eye(FACTOR_BLOCK, dtype=matrix.dtype, device=matrix.device)
        whole[:size, :size] = matrix
        return lower_inverse(whole, unit=unit)[:size, :size]
    inverse = matrix.new_zeros(size, size)
    eye = torch.eye(_SOLVED, dtype=matrix.dtype, device=matrix.device)
    solved: Tensor = torch.linalg.solve_triangular(_corners(matrix), eye, upper=False, unitriangular=unit)
    _corners(inverse).copy_(solved)
    width = _SOLVED
    while width < size:
        for middle in range(width, size, 2 * width):
            first, second = slice(middle - width, middle), slice(middle, middle + width)
            moved = matrix[second, first] @ inverse[first, first]
            inverse[second, first].addmm_(inverse[second, second], moved, alpha=-1)
        width *= 2
    return inverse


def _corners(matrix: Tensor) -> Tensor:
    """Return a view of the blocks on the diagonal that are inverted one by one."""
    count = len(matrix) // _SOLVED
    blocks = matrix.view(count, _SOLVED, count, _SOLVED)
    return blocks.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
