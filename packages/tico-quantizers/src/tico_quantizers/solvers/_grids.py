"""How the grid of a group of columns follows from their values."""

from __future__ import annotations

import math
from fractions import Fraction

import attrs
import torch
from torch import Tensor

from tico_config import (
    Element,
    FloatFormat,
    GPTQConfig,
    HessianMSESpec,
    MSESpec,
    NumberFormat,
    PercentileSpec,
    PerTensor,
)
from tico_observers import params_from_range
from tico_observers.float_formats import nearby_scales, round_elements_, tensor_scale_of
from tico_observers.products import total
from tico_quantizers.solvers._group_grid import GroupGrid
from tico_quantizers.solvers._shrinking import least_error_share
from tico_quantizers.solvers._super_block import under_super_block


@attrs.frozen(eq=False)
class GridRule:
    """How grids are found, for columns in a fixed order.

    `costs` are the costs of an error in each column, in this order: the diagonal of H or, where later columns
    compensate for the error, what remains of it. They are 0 where inputs were always zero. Scales of `NVFP4`
    are multiples of `tensor_scale`, which is that of one weight: see `for_weight`.
    """

    config: GPTQConfig
    costs: Tensor
    tensor_scale: Tensor | None = None

    def for_weight(self, columns: Tensor) -> GridRule:
        """Return the rule for one weight (columns, rows), whose scales may share one of the tensor."""
        dtype = self.dtype
        if not isinstance(dtype, FloatFormat) or dtype.scale_format != "e4m3":
            return self
        return attrs.evolve(self, tensor_scale=tensor_scale_of(columns.abs().amax()))

    @property
    def group(self) -> int:
        """The number of columns that share a grid."""
        return self.config.shared_columns or len(self.costs)

    @property
    def span(self) -> int:
        """The number of columns whose grids are found together."""
        shared = self.config.super_block
        return self.group if shared is None else shared.columns

    @property
    def dtype(self) -> NumberFormat:
        """The format of the codes."""
        return self.config.number_format

    @property
    def element(self) -> Element | None:
        """The floating-point elements that steps are rounded to; None for integers."""
        return self.dtype.encoding if isinstance(self.dtype, FloatFormat) else None

    @property
    def width(self) -> float:
        """How far apart the smallest and the largest value are, in units of the scale."""
        element = self.element
        return self.dtype.qmax - self.dtype.qmin if element is None else 2 * element.largest

    def grids(self, columns: Tensor, start: int) -> list[GroupGrid]:
        """Return the grid of each group of `columns` (columns, rows), a span that begins at `start`."""
        size, shared = self.group, self.config.super_block
        places = range(0, len(columns), size)
        found = [self.grid(columns[place : place + size], start + place) for place in places]
        return found if shared is None else under_super_block(found, shared)

    def grid(self, columns: Tensor, start: int) -> GroupGrid:
        """Return a grid for each row, or one for all, from `columns` (columns, rows).

        The first of the columns is number `start`. Those whose inputs were always zero count as others do:
        data to come may have other inputs, and a weight that was cut off would then cost many steps.
        """
        low, high = self._range(columns)
        whole = self.of_ranges(low, high)
        observer = self.config.grid_observer
        if not isinstance(observer, MSESpec | HessianMSESpec):
            return whole
        costs = self._importance()[start : start + len(columns)]
        if self.element is not None:
            weights = costs if isinstance(observer, HessianMSESpec) and bool(costs.any()) else None
            return self._searched(columns, whole, observer.steps, weights)
        weighted = isinstance(observer, HessianMSESpec) and bool(costs.any())
        share = least_error_share(
            columns,
            whole,
            observer.steps,
            importance=costs if weighted else None,
            shared=self.config.per_tensor,
        )
        return self.of_ranges(low * share, high * share)

    def _searched(
        self, columns: Tensor, whole: GroupGrid, steps: int, importance: Tensor | None
    ) -> GroupGrid:
        """Return the grid of floating-point elements, near that of the rule, of least squared error."""
        dtype = self.config.dtype
        if dtype is None:
            return whole
        best, least = whole.scale, torch.full_like(whole.scale, torch.inf, dtype=torch.float64)
        weights = None if importance is None else importance.to(columns.dtype)[:, None]
        for scale in nearby_scales(whole.scale, dtype, steps, self.tensor_scale):
            errors = round_elements_(columns / scale, dtype.encoding).mul_(scale).sub_(columns).square_()
            summed = (errors if weights is None else errors.mul_(weights)).sum(0).to(torch.float64)
            cost = total(summed).view(least.shape) if self.config.per_tensor else summed
            better = cost < least
            best, least = torch.where(better, scale, best), torch.minimum(cost, least)
        return GroupGrid(attrs.evolve(whole.params, scale=best))

    def _importance(self) -> Tensor:
        """Return the costs; where inputs were always zero, the mean of where they were not."""
        alive = self.costs[self.costs != 0]
        return torch.where(self.costs == 0, float(total(alive)) / max(len(alive), 1), self.costs)

    @property
    def is_of_ranges(self) -> bool:
        """Whether the grid of a row in a group follows from the range of its values there."""
        found = isinstance(self.config.grid_observer, MSESpec | HessianMSESpec | PercentileSpec)
        return not (found or self.config.per_tensor or self.config.super_block is not None)

    def of_ranges(self, low: Tensor, high: Tensor) -> GroupGrid:
        """Return the grid of each range from `low` to `high`."""
        symmetric, shared = self.config.symmetric, self.config.super_block
        params = params_from_range(
            low,
            high,
            self.dtype,
            symmetric=symmetric,
            granularity=PerTensor(),
            tensor_scale=self.tensor_scale,
        )
        if shared is None or not shared.has_offsets:
            return GroupGrid(params)
        # The smallest value is 0 or below, as in llama.cpp, and exactly that of the code 0.
        offset = low.clamp(max=0).neg().to(params.scale.dtype)
        return GroupGrid(attrs.evolve(params, zero_point=torch.zeros_like(params.zero_point)), offset)

    def _range(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """Return the ends of the range of each row, or of all."""
        if self.config.per_tensor:
            columns = columns.reshape(-1, 1)
        observer = self.config.grid_observer
        if isinstance(observer, PercentileSpec):
            # Decimal text makes 99.99 mean that number, not the nearest float.
            lower, upper = (Fraction(repr(end)) * (len(columns) - 1) / 100 for end in attrs.astuple(observer))
            return _ranked(columns, math.floor(lower)), _ranked(columns, math.ceil(upper))
        return columns.amin(0), columns.amax(0)


def _ranked(columns: Tensor, rank: int) -> Tensor:
    """Return the value of each row that `rank` others are not above of, counted from 0."""
    return torch.kthvalue(columns, rank + 1, dim=0).values
