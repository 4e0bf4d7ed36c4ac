"""Which points of a model one channel, or one part, spoils for the others: the one definition of it."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Final

SPOILED: Final = 0.99
"""From this share of its range on that one has to itself, a point is spoiled: the rest fill a hundredth."""

ONE_CHANNEL: Final = "range taken by one channel"
ONE_PART: Final = "range taken by one part"
_LABELS: Final = (ONE_CHANNEL, ONE_PART)


def spoiled_figures(
    point: str, by_channel: float | None, by_part: float | None = None
) -> tuple[tuple[str, float], ...]:
    """Return the figures by which a report names a spoiled point; none where it is not.

    `by_channel` is the `dominance` of the point's channels. `by_part` is the same for what a concatenation
    joins: ``1 - smallest / largest`` of the largest magnitudes of its parts. None where they are not known.

    >>> spoiled_figures("act_out", 0.5, 0.997)
    (('act_out range taken by one part', 0.997),)
    """
    shares = zip(_LABELS, (by_channel, by_part), strict=True)
    return tuple(
        (f"{point} {label}", share) for label, share in shares if share is not None and share >= SPOILED
    )


def spoiled_points(figures: Iterable[tuple[str, float]]) -> Iterator[tuple[str, float]]:
    """Yield the points that `figures` of a report name as spoiled, each with the share.

    >>> dict(spoiled_points([("act_in range taken by one channel", 0.995), ("macs", 8.0)]))
    {'act_in': 0.995}
    """
    for name, share in figures:
        for label in _LABELS:
            if name.endswith(f" {label}"):
                yield name.removesuffix(f" {label}"), share


def warn_of_spoiled(found: Mapping[str, float]) -> None:
    """Warn of points that are `found` to be spoiled on grids of few codes, by path, with the share.

    >>> warn_of_spoiled({})
    """
    if not found:
        return
    worst = sorted(found.items(), key=lambda point: -point[1])
    first = ", ".join(f"{path} {share:.2%}" for path, share in worst[:3])
    more = f" and {len(worst) - 3} more" if len(worst) > 3 else ""
    text = (
        f"one channel or part takes nearly all of the range of {first}{more}, and a grid of at most 8 bits "
        "leaves hardly a code for the others; give these points 16 bits, PerToken(), or no_quant()"
    )
    warnings.warn(text, UserWarning, stacklevel=2)
