"""What the points of a quantized model see of data, in values."""

from __future__ import annotations

import json
from typing import final

import attrs


@final
@attrs.frozen(kw_only=True)
class Bin:
    """How many values lie between two edges; the edge nearer to 0 belongs to it."""

    low: float
    high: float
    count: int


@final
@attrs.frozen(kw_only=True)
class SeenPoint:
    """What came to one grid of activations.

    Attributes:
        path: of the point, as in a report.
        grid: its format, for example ``int8 static``.
        low: the lowest value that it can hold; None where the grid follows the data, or differs by channel.
        high: the highest one, likewise.
        values: how many values came, masks left out.
        clipped: how many of these are more than half a step beyond the grid; None where it follows the data.
        smallest: the smallest of these; 0 where there are none.
        largest: the largest one.
        masks: how many more were so large as a mask makes them, infinite or NaN.
        bins: the histogram of the values, in order: two bins an octave, those without any left out.
    """

    path: str
    grid: str
    low: float | None
    high: float | None
    values: int
    clipped: int | None
    smallest: float
    largest: float
    masks: int
    bins: tuple[Bin, ...]

    @property
    def share_clipped(self) -> float | None:
        """The share of the values that is clipped; None where the grid follows the data."""
        if self.clipped is None:
            return None
        return self.clipped / self.values if self.values else 0.0


@final
@attrs.frozen(kw_only=True)
class SeenPoints:
    """What came to each grid of activations, in the order of the model."""

    points: tuple[SeenPoint, ...]

    def to_json(self) -> str:
        """Return all of it as JSON.

        >>> SeenPoints(points=()).to_json()
        '{"points": []}'
        """
        shares = [{**attrs.asdict(each), "share_clipped": each.share_clipped} for each in self.points]
        return json.dumps({"points": shares})

    def to_markdown(self) -> str:
        """Return a table of the points, those that clip the most first, without the histograms."""
        head = "| point | grid | holds | saw | clipped |\n|---|---|---|---|---|"
        ordered = sorted(self.points, key=lambda each: (-(each.share_clipped or 0.0), each.path))
        return "\n".join([head, *map(_row, ordered)])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


def _row(point: SeenPoint) -> str:
    share, holds = point.share_clipped, ""
    if point.low is not None and point.high is not None:
        holds = f"{point.low:.4g} to {point.high:.4g}"
    clipped = "follows the data" if share is None else f"{share:.3%}"
    saw = f"{point.smallest:.4g} to {point.largest:.4g}"
    return f"| {point.path} | {point.grid} | {holds} | {saw} | {clipped} |"
