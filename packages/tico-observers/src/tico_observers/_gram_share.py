"""A Gram matrix that several workers compute, each some of its panels, with the bits that one would find."""

from __future__ import annotations

from collections.abc import Sequence
from typing import final

import attrs
from torch import Tensor

from tico_config import LifecycleError, Problem
from tico_observers._gram import GramStatistic, panels_in


@final
@attrs.frozen(kw_only=True, eq=False)
class GramShare(GramStatistic):
    """The panels that worker `number` of `of` has of a `GramStatistic`; all of them see the same rows.

    Each panel is the same product as in the whole statistic, so that `joined` gives its bits.

    >>> import torch
    >>> rows = torch.arange(900.0).reshape(3, 300)
    >>> shares = [GramShare(columns=300, number=number, of=2).observe(rows) for number in range(2)]
    >>> whole = GramStatistic(columns=300).observe(rows)
    >>> joined = shares[0].joined([share.upper for share in shares])
    >>> torch.equal(joined.matrix(), whole.matrix())
    True
    """

    number: int = 0
    of: int = 1

    def _panels(self) -> list[tuple[int, int]]:
        return [panel for panel, owner in self._owned() if owner == self.number]

    def _owned(self) -> list[tuple[tuple[int, int], int]]:
        """Return all panels with their owners: back and forth, as each is shorter than the one before."""
        back = 2 * self.of - 1
        places = ((index % (2 * self.of), panel) for index, panel in enumerate(panels_in(self.columns)))
        return [(panel, min(place, back - place)) for place, panel in places]

    def matrix(self) -> Tensor:
        """Refuse: it is a part of one.

        Raises:
            LifecycleError: always.
        """
        expected = "the joined panels of all workers"
        raise LifecycleError(
            Problem(
                field="matrix",
                value=self.number,
                expected=expected,
                sentence="it has only some panels of the matrix",
            )
        )

    def joined(self, uppers: Sequence[tuple[Tensor, ...]]) -> GramStatistic:
        """Return the whole statistic, given the panels `upper` of all workers, in their order."""
        own = list(map(iter, uppers))
        upper = tuple(next(own[owner]) for _, owner in self._owned()) if any(uppers) else ()
        return GramStatistic(columns=self.columns, rows=self.rows, upper=upper, pending=self.pending)
