"""Gram matrices of the groups of a layer's inputs."""

from __future__ import annotations

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_observers import GramStatistic


@attrs.frozen(eq=False)
class GroupedGram:
    """What a layer has read: a Gram matrix for each group of its channels, one where it has no groups.

    >>> import torch
    >>> gram = GroupedGram.empty(groups=1, columns=2).observe(torch.tensor([[[1.0, 2.0]]]))
    >>> gram.rows, gram.parts[0].matrix().tolist()
    (1, [[1.0, 2.0], [2.0, 4.0]])
    """

    parts: tuple[GramStatistic, ...]

    @classmethod
    def empty(cls, *, groups: int, columns: int) -> Self:
        """Return the one that has seen nothing."""
        return cls((GramStatistic(columns=columns),) * groups)

    @property
    def rows(self) -> int:
        """How many rows each group has seen."""
        return self.parts[0].rows

    def observe(self, rows: Tensor, *, in_place: bool = False) -> Self:
        """Return the one with `rows` (groups, rows, columns) added; `in_place` uses up this one's memory."""
        pairs = zip(self.parts, rows, strict=True)
        return type(self)(
            tuple(part.observe_in_place(own) if in_place else part.observe(own) for part, own in pairs)
        )

    def merge(self, other: Self) -> Self:
        """Return the one that has seen the rows of both."""
        pairs = zip(self.parts, other.parts, strict=True)
        return type(self)(tuple(part.merge(own) for part, own in pairs))
