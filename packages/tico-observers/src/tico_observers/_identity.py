"""Identity: how much was seen, and nothing of what it was."""

from __future__ import annotations

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_config import Problem, UnsupportedError
from tico_observers._statistic import Statistic


@attrs.frozen(kw_only=True)
class IdentityStatistic(Statistic):
    """The number of elements seen, of any tensor: commutative and exact.

    >>> import torch
    >>> IdentityStatistic().observe(torch.zeros(2, 3)).elements
    6
    """

    elements: int = 0

    @property
    def is_empty(self) -> bool:
        """Whether no element was seen."""
        return self.elements == 0

    def observe(self, x: Tensor) -> Self:
        """Return the count with the elements of `x`, which may be of any format and hold anything.

        Raises:
            UnsupportedError: `x` is not a tensor.
        """
        if not isinstance(x, Tensor):
            raise UnsupportedError(Problem(field="x", value=x, expected="a tensor"))
        return attrs.evolve(self, elements=self.elements + x.numel())

    def merge(self, other: Self) -> Self:
        """Return the count of both."""
        return attrs.evolve(self, elements=self.elements + other.elements)
