"""Gram matrices of the groups of a layer's inputs."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import Found, NumericsError, Problem
from tico_observers import AbsMaxStatistic, GramStatistic, products


@attrs.frozen(eq=False)
class GroupedGram:
    """What a layer has read: a Gram matrix for each group of its channels, one where it has no groups.

    `total` is the sum of the weights of its rows, `squares` that of their squares. `features` has the range
    of each input feature, as far as `observe_features` was told of inputs.

    >>> gram = GroupedGram.empty(groups=1, columns=2).observe(torch.tensor([[[1.0, 2.0]]]))
    >>> gram.rows, gram.parts[0].matrix().tolist()
    (1, [[1.0, 2.0], [2.0, 4.0]])
    """

    parts: tuple[GramStatistic, ...]
    total: float = 0.0
    squares: float = 0.0
    features: AbsMaxStatistic = attrs.field(factory=AbsMaxStatistic)

    @classmethod
    def empty(cls, *, groups: int, columns: int) -> Self:
        """Return the one that has seen nothing."""
        return cls((GramStatistic(columns=columns),) * groups)

    @property
    def rows(self) -> int:
        """How many rows each group has seen."""
        return self.parts[0].rows

    @property
    def effective_rows(self) -> float:
        """How many rows of equal weight tell as much as these: Kish's (Σw)² / Σw²."""
        return self.total**2 / self.squares if self.squares else 0.0

    def means(self) -> list[Tensor]:
        """Return the mean of xᵀx over the rows, float32 (columns, columns), of each group.

        Raises:
            NumericsError: float32 does not hold the squares of the inputs.
        """
        return [_narrowed(part.matrix() / self.rows) for part in self.parts]

    def observe(self, rows: Tensor, weights: Tensor | None = None, *, in_place: bool = False) -> Self:
        """Return the one with `rows` (groups, rows, columns) added, weighted by `weights` (rows,).

        `in_place` uses up this one's memory.
        """
        pairs = zip(self.parts, rows, strict=True)
        parts = tuple(
            part.observe_in_place(own, weights) if in_place else part.observe(own, weights)
            for part, own in pairs
        )
        total = squares = float(rows.shape[1])
        if weights is not None:
            total, squares = (float(products.total(weights.double().pow(power))) for power in (1, 2))
        return attrs.evolve(self, parts=parts, total=self.total + total, squares=self.squares + squares)

    def observe_features(self, x: Tensor) -> Self:
        """Return the one with the ranges of an input `x` (…, features) added."""
        return attrs.evolve(self, features=self.features.observe(x))

    def merge(self, other: Self) -> Self:
        """Return the one that has seen the rows of both."""
        pairs = zip(self.parts, other.parts, strict=True)
        parts = tuple(part.merge(own) for part, own in pairs)
        total, squares = self.total + other.total, self.squares + other.squares
        return type(self)(parts, total, squares, self.features.merge(other.features))


def _narrowed(mean: Tensor) -> Tensor:
    found, largest = mean.to(torch.float32), float(mean.diagonal().max())
    if largest and not 2.0**-100 < largest < 2.0**100:
        size = Found(f"about {largest**0.5:.2g}")
        sentence = f"its inputs are {size}, beyond what float32 holds the squares of"
        raise NumericsError(
            Problem(
                field="input",
                value=size,
                expected="magnitudes from 1e-15 to 1e+15",
                sentence=sentence,
                remedy="scale the weights of the layer and of what comes before it",
            )
        )
    return found
