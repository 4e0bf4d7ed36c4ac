"""What shares the grid of one value: the range of each channel, and of each part of a concatenation."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_observers import ChannelRangeStatistic, Extremes
from tico_quantizers.calibration import spoiled_figures


@attrs.frozen(kw_only=True, eq=False)
class SharedRange:
    """The ranges seen: commutative, associative and idempotent, bit for bit.

    `parts` are the largest magnitudes in what a concatenation joins; empty for other values.
    """

    channels: ChannelRangeStatistic
    parts: tuple[float, ...] = ()

    def including(self, channels: Extremes, parts: Sequence[Tensor]) -> Self:
        """Return the ranges of everything seen so far, and of a value with these channels and parts."""
        seen = tuple(map(_magnitude, parts))
        return attrs.evolve(
            self,
            channels=self.channels.merge(attrs.evolve(self.channels, channels=channels)),
            parts=tuple(map(max, self.parts, seen)) if self.parts else seen,
        )

    @property
    def dominance_of_parts(self) -> float | None:
        """The share of the range, 0 to 1, that the largest part has to itself beside the smallest.

        Parts that are always 0 lose nothing on any grid, and do not count. None where no part is left.
        """
        used = [part for part in self.parts if part > 0]
        return 1.0 - min(used) / max(used) if used else None

    def figures(self, point: str) -> tuple[tuple[str, float], ...]:
        """Return the figures of the report, where the range is spoiled for most that shares it."""
        return spoiled_figures(point, self.channels.dominance, self.dominance_of_parts)


def _magnitude(x: Tensor) -> float:
    return x.detach().abs().amax().item() if x.numel() else 0.0
