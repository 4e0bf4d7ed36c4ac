"""HQQ on tensors (Badri and Shaji 2023, https://mobiusml.github.io/hqq_blog)."""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor
from torch.nn.functional import pad

from tico_observers import AffineParams
from tico_quantizers.solvers._awq import Grid
from tico_quantizers.solvers._powers import power

_PIECE: Final = 2**17  # weights at a time, so that memory is bounded
_SUMMED: Final = 2**14  # more to a single number would depend on the number of threads
_SMALLEST: Final = torch.finfo(torch.float32).smallest_normal
_BETA: Final = 10.0
_GROWTH: Final = 1.01


@attrs.frozen(eq=False, kw_only=True)
class LpGrid:
    """The grids of a weight, and the Lp losses (rows, groups) of rounding to them and to min/max grids.

    A loss is the sum of ``|w - ŵ|ᵖ``, in steps of the group's min/max grid.
    """

    params: AffineParams
    loss: Tensor
    rounded_loss: Tensor


def half_quadratic(weight: Tensor, grid: Grid, *, lp_norm: float, steps: int) -> LpGrid:
    """Return the best grids met in `steps` half-quadratic steps from the min/max grids of `weight`.

    A step takes outliers off the errors e of the codes, ``sign(e) max(|e| - |e|ᵖ⁻¹ / β, 0)``, and fits scale
    and zero point to the rest by least squares. β is 10 where errors are in steps of the min/max grid, and
    grows by 1.01 each time. The paper keeps the scale, and its zero points are floats. Here they are codes,
    which hardly ever move while the scale stays: so the line through both is fitted, its zero point rounded,
    and the scale fitted again to that, but not below what leaves a weight off by more than half a step: a
    range that is cut off lowers the loss and ruins models. Of each group the grid with the smallest loss
    stays, so that none does worse than rounding to nearest.

    >>> from tico_config import DType
    >>> grid = Grid(dtype=DType.uint(2), symmetric=False, group_size=None)
    >>> found = half_quadratic(torch.tensor([[0.0, 1.0, 1.0, 2.0, 2.0, 3.4]]), grid, lp_norm=0.7, steps=20)
    >>> bool(found.loss < found.rounded_loss)
    True
    """
    whole, width = grid.params(weight), grid.width(weight)
    missing, size = -weight.shape[1] % width, max(1, _PIECE // width)
    counts = torch.full_like(whole.scale, width)
    counts[:, -1] -= missing
    groups = pad(weight, (0, missing)).reshape(-1, width)  # zeros are rounded to themselves
    columns = [each.view(-1, 1) for each in (whole.scale, whole.zero_point.to(torch.float32), counts)]
    pieces = zip(*(torch.split(each, size) for each in (groups, *columns)), strict=True)
    found = [
        _Groups(w, scale, zero, count, grid, lp_norm).improved(steps) for w, scale, zero, count in pieces
    ]
    scale, zero, loss, rounded = (torch.cat(each).view_as(counts) for each in zip(*found, strict=True))
    return LpGrid(params=attrs.evolve(whole, scale=scale, zero_point=zero), loss=loss, rounded_loss=rounded)


@attrs.frozen(eq=False)
class _Groups:
    """Some groups (groups, width), their first grids, and how many weights each has (groups, 1)."""

    weight: Tensor
    scale: Tensor
    zero: Tensor
    count: Tensor
    grid: Grid
    lp_norm: float

    def improved(self, steps: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the scales and zero points of the smallest loss, that loss, and the first one."""
        scale, zero, rounded = self.scale, self.zero, self._rounded(self.scale, self.zero)
        best = scale, zero, _sums(rounded[-1])
        first = best[-1]
        for step in range(steps):
            scale, zero = self._fitted(scale, zero, rounded, _BETA * _GROWTH**step)
            rounded = self._rounded(scale, zero)
            loss = _sums(rounded[-1])
            better, (old, at, least) = loss < best[-1], best
            best = torch.where(better, scale, old), torch.where(better, zero, at), torch.fmin(loss, least)
        return *best, first

    def _rounded(self, scale: Tensor, zero: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return steps from zero, and errors with their powers in steps of the first grids."""
        low, high = self.grid.dtype.qmin - zero, self.grid.dtype.qmax - zero
        steps = (self.weight * scale.reciprocal()).round_().clamp_(low, high)
        error = (self.weight - steps * scale).div_(self.scale)
        return steps, error, power(error.abs().flatten(), self.lp_norm).view_as(error)

    def _fitted(
        self, scale: Tensor, zero: Tensor, rounded: tuple[Tensor, Tensor, Tensor], beta: float
    ) -> tuple[Tensor, Tensor]:
        """Return the scales and zero points of the line from the codes to the weights without outliers."""
        steps, error, powers = rounded
        bound = powers / error.abs().clamp_(min=_SMALLEST).mul_(beta)
        kept, factor = torch.clamp(error, -bound, bound), scale / self.scale
        count, codes, squares = self.count, _sums(steps), _sums(steps.square())
        total, product = factor * codes + _sums(kept), factor * squares + _sums(kept.mul_(steps))
        shift = torch.zeros_like(zero)
        if not self.grid.symmetric:
            slope = (count * product - codes * total) / (count * squares - codes.square())
            moved = zero + (codes / count - total / (count * slope)).nan_to_num_(0.0, 0.0, 0.0)
            shift = moved.round_().clamp_(self.grid.dtype.qmin, self.grid.dtype.qmax).float() - zero
        slope = (product - shift * total) / (squares - 2 * shift * codes + count * shift.square())
        fitted, zero = torch.maximum((slope * self.scale).float(), self._least(zero + shift)), zero + shift
        return torch.where(fitted.isfinite() & (fitted >= _SMALLEST), fitted, scale), zero

    def _least(self, zero: Tensor) -> Tensor:
        """Return the smallest scales with which no weight is off by more than half a step."""
        low, high = torch.aminmax(self.weight, dim=1, keepdim=True)
        dtype = self.grid.dtype
        return torch.maximum(high / (dtype.qmax - zero + 0.5), low / (dtype.qmin - zero - 0.5))


def _sums(values: Tensor) -> Tensor:
    """Return the sum of each row, (rows, 1), float64."""
    parts = [part.sum(1, keepdim=True) for part in torch.split(values, _SUMMED, 1)]
    return torch.stack(parts).sum(0, dtype=torch.float64)
