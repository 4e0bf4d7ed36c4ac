"""AWQ on tensors (Lin et al. 2023, arXiv 2306.00978)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import FloatFormat, NumberFormat, PerGroup
from tico_observers import AffineParams, fake_quantize, params_from_range
from tico_quantizers.solvers._consumer import ConsumerWeight
from tico_quantizers.solvers._output_error import output_error, row_errors
from tico_quantizers.solvers._powers import power

_SHARES: Final = tuple(1 - step / 20 for step in range(11))
"""How much of a group's range is tried, from all of it to half of it."""


@attrs.frozen(eq=False, kw_only=True)
class Grid:
    """The grids of a weight: one for each row, or for each run of `group_size` columns of a row."""

    dtype: NumberFormat
    symmetric: bool
    group_size: int | None

    def width(self, weight: Tensor) -> int:
        """Return how many columns of `weight` share a grid."""
        return self.group_size or weight.shape[1]

    def params(self, weight: Tensor, share: Tensor | float = 1.0) -> AffineParams:
        """Return the grids of `weight` (rows, columns) over `share` (rows, groups) of each group's range."""
        low, high = self._range(weight, share)
        unit = PerGroup(axis=1, size=self.width(weight))
        return params_from_range(low, high, self.dtype, symmetric=self.symmetric, granularity=unit)

    def _range(self, weight: Tensor, share: Tensor | float) -> tuple[Tensor, Tensor]:
        low, high = torch.aminmax(_in_groups(weight, self.width(weight)), dim=2)
        return low.to(torch.float64) * share, high.to(torch.float64) * share

    def clipped(self, weight: Tensor, share: Tensor) -> Tensor:
        """Return `weight` with what lies outside `share` of each group's range moved to its ends."""
        low, high = self._range(weight, share)
        if self.symmetric:
            scale = self.params(weight, share).scale
            low, high = scale * self.dtype.qmin, scale * self.dtype.qmax
            if isinstance(self.dtype, FloatFormat):
                high = scale * self.dtype.encoding.largest
                low = -high
        per_column = (end.to(weight.dtype).repeat_interleave(self.width(weight), 1) for end in (low, high))
        low, high = (end[:, : weight.shape[1]] for end in per_column)
        return weight.clamp(low, high)


def magnitudes(consumers: Sequence[ConsumerWeight], channels: int) -> Tensor:
    """Return the root mean square of each channel (float64), the largest where several columns read it."""
    found = torch.zeros(channels, dtype=torch.float64, device=consumers[0].gram.device)
    for consumer in consumers:
        squares = consumer.gram.diagonal().to(torch.float64).clamp(min=0)
        found.scatter_reduce_(0, consumer.channels, squares.sqrt(), "amax")
    return found


def scale_for(magnitude: Tensor, share: float) -> Tensor:
    """Return ``s = magnitude ** share`` (section 3.2), its largest and smallest value each other's inverse.

    Channels that are always zero get 1; float32.

    >>> scale_for(torch.tensor([4.0, 1.0, 0.0]), 1.0).tolist()
    [2.0, 0.5, 1.0]
    """
    alive = magnitude > 0
    if not bool(alive.any()):
        return torch.ones_like(magnitude, dtype=torch.float32)
    scale = power(magnitude.to(torch.float64), share)
    middle = (scale[alive].max() * scale[alive].min()).sqrt()
    return torch.where(alive, scale / middle, 1.0).to(torch.float32)


def best_scale(
    consumers: Sequence[ConsumerWeight], grids: Sequence[Grid], magnitude: Tensor, steps: int
) -> tuple[float, Tensor]:
    """Return the share, of 0, 1 / steps, …, after which rounding changes the outputs least, and its scale.

    Each of `consumers` is rounded on its own one of `grids`.
    """
    found: list[tuple[float, float, Tensor]] = []
    for step in range(steps):
        scale = scale_for(magnitude, step / steps)
        pairs = zip(consumers, grids, strict=True)
        error = sum(rounding_error(consumer, grid, scale) for consumer, grid in pairs)
        found.append((error, step / steps, scale))
    _, share, scale = min(found, key=lambda each: each[:2])
    return share, scale


def rounding_error(consumer: ConsumerWeight, grid: Grid, scale: Tensor) -> float:
    """Return the mean squared change of a layer's outputs when its scaled weight is rounded."""
    own = scale[consumer.channels]
    scaled = consumer.weight * own
    change = (fake_quantize(scaled, grid.params(scaled)) - scaled) / own
    return float(output_error(change, consumer.gram))


def best_shares(weight: Tensor, gram: Tensor, grid: Grid) -> Tensor:
    """Return the share of each group's range over which rounding changes the outputs least, (rows, groups).

    Each group counts for itself; of equally good shares, the largest. A row for which the groups together do
    worse than with their whole ranges keeps those.

    >>> from tico_config import DType
    >>> grid = Grid(dtype=DType.uint(2), symmetric=False, group_size=None)
    >>> weight = torch.tensor([[1.0, 0.34, -0.33, -0.32, 0.02]])
    >>> best_shares(weight, torch.diag(torch.tensor([0.01, 1.0, 1.0, 1.0, 1.0])), grid).item() < 1
    True
    """
    width = grid.width(weight)
    blocks = _diagonal_blocks(gram, width)
    groups = len(blocks)
    best = torch.ones(len(weight), groups, dtype=torch.float64, device=weight.device)
    least: Tensor | None = None
    for share in _SHARES:
        change = fake_quantize(weight, grid.params(weight, share)) - weight
        error = _group_errors(_in_groups(change, width), blocks)
        if least is None:
            least = error
        best = torch.where(error < least, share, best)
        least = torch.minimum(error, least)
    clipped, whole = (
        row_errors(fake_quantize(weight, grid.params(weight, share)) - weight, gram) for share in (best, 1.0)
    )
    return torch.where((clipped < whole)[:, None], best, 1.0)


def _in_groups(weight: Tensor, width: int) -> Tensor:
    """Return `weight` as (rows, groups, width), filled with zeros, which change no range and no error."""
    padded = torch.nn.functional.pad(weight, (0, -weight.shape[1] % width))
    return padded.view(len(weight), -1, width)


def _diagonal_blocks(gram: Tensor, width: int) -> Tensor:
    missing = -len(gram) % width
    padded = torch.nn.functional.pad(gram, (0, missing, 0, missing))
    return torch.stack(
        [padded[start : start + width, start : start + width] for start in range(0, len(padded), width)]
    )


def _group_errors(change: Tensor, blocks: Tensor) -> Tensor:
    """Return d H dᵀ for each row d of each group of `change` (rows, groups, width), H from `blocks`."""
    return torch.stack([row_errors(change[:, group], block) for group, block in enumerate(blocks)], 1)
