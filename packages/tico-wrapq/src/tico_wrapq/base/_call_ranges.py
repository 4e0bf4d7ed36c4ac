"""The ranges of a point whose module is called several times in a forward pass, told apart by call."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, final

import torch
from typing_extensions import Self

from tico_observers import Extremes

UNEVEN: Final = 4.0
"""From this ratio of the widest call to the narrowest on, the latter has lost two bits to the former."""


@final
class CallRanges:
    """What the first call of each pass has shown, what the second one has, and so on.

    Nothing is kept as long as every pass has one call.
    """

    def __init__(self) -> None:
        self._latest: list[Extremes] = []
        self._done: tuple[Extremes, ...] = ()

    def see(self, seen: Extremes) -> None:
        """Note the channels' ranges of one call, until the pass ends."""
        self._latest.append(seen)

    def drop_unfinished(self) -> None:
        """Forget what the forward pass under way has shown."""
        self._latest.clear()

    def accept(self) -> None:
        """Count what the forward pass under way has shown."""
        if len(self._latest) > 1 or self._done:
            with torch.inference_mode(mode=False), torch.no_grad():
                self._add([_whole(seen) for seen in self._latest])
        self._latest.clear()

    @property
    def shown(self) -> tuple[Extremes, ...]:
        """What the first call of each pass has shown, what the second one has, and so on."""
        return self._done

    @classmethod
    def joined(cls, parts: Iterable[tuple[Extremes, ...]]) -> Self:
        """Return the ranges of all `parts`, call by call."""
        found = cls()
        for part in parts:
            found._add(part)
        return found

    def _add(self, shown: Sequence[Extremes]) -> None:
        both = [one.merge(other) for one, other in zip(self._done, shown, strict=False)]
        self._done = (*both, *self._done[len(both) :], *shown[len(both) :])

    @property
    def uneven(self) -> tuple[tuple[float, float], ...]:
        """The smallest and largest value of each call, where the widths differ by `UNEVEN`; else none."""
        ranges = tuple((seen.minimum.item(), seen.maximum.item()) for seen in self._done)
        # A grid holds zero, too; a call that has shown nothing else needs none.
        widths = [width for low, high in ranges if (width := max(high, 0.0) - min(low, 0.0)) > 0]
        return ranges if widths and max(widths) >= UNEVEN * min(widths) else ()


def _whole(seen: Extremes) -> Extremes:
    return Extremes(minimum=seen.minimum.amin(), maximum=seen.maximum.amax())
