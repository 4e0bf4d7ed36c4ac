"""Codes as histograms, and the ranges of the grids of activations."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Final

from tico_modules._facts.model_facts import CodeCounts, ModelFacts, PointRange
from tico_modules._page.charts import Axis, columns, svg
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import share_text
from tico_modules._page.rows import Row
from tico_modules._page.tables import bar, section, track

_MOST_BARS: Final = 64
_POINTS: Final = 24


def codes(model: ModelFacts | None, rows: Sequence[Row]) -> Markup:
    """Return how often each code occurs in the weights with the lowest SQNR."""
    if model is None or not model.codes:
        return Markup()
    ratios = {row.line.path: row.sqnr for row in rows}
    text = (
        "How often each code occurs in the weights with the lowest SQNR. A picture ends where the grid"
        " ends. Where outliers stretch a grid, nearly all weights share the few codes in its middle."
    )
    shown = joined(_histogram(each, ratios.get(each.path)) for each in model.codes)
    return section(
        "codes", "Codes of the worst weights", element("p", text), element("div", shown, class_="small")
    )


def _histogram(counted: CodeCounts, sqnr: float | None) -> Markup:
    counts, lowest = counted.counts, counted.lowest
    width = -(-len(counts) // _MOST_BARS)
    bars = [float(sum(counts[first : first + width])) for first in range(0, len(counts), width)]
    highest = lowest + len(counts) - 1
    ends, whole = counts[0] + counts[-1], sum(counts)
    text = f"Codes {lowest} to {highest}; {share_text(ends, whole)} of them at the two ends"
    text += "" if sqnr is None else f"; SQNR {sqnr:.1f} dB"
    text += (
        "" if counted.rows == counted.of_rows else f"; {counted.rows:,} of {counted.of_rows:,} rows counted"
    )
    drawing = svg(counted.path, text, columns(bars, Axis.around(bars, zero=True)), width=len(bars))
    below = element("div", element("span", str(lowest)), element("span", str(highest)), class_="below")
    return element(
        "figure",
        element("h3", counted.path or "the model itself"),
        drawing,
        below,
        element("figcaption", text),
    )


def points(model: ModelFacts | None) -> Markup:
    """Return what the grids of activations span, the widest first."""
    fixed = [] if model is None else [point for point in model.points if point.low is not None]
    if not fixed:
        return Markup()
    ordered = sorted(fixed, key=lambda point: (-_reach(point), point.path))
    text = (
        f"What {len(fixed):,} fixed grids can hold, the widest first; the scale is logarithmic on both sides"
        " of 0. `watch_points` says which share of the data lies beyond."
    )
    text += f" The other {len(fixed) - _POINTS:,} are in the JSON." if len(fixed) > _POINTS else ""
    items = joined(_points(ordered[:_POINTS]))
    return section("points", "Grids of activations", element("p", text), element("ul", items, class_="bars"))


def _points(shown: Sequence[PointRange]) -> Iterator[Markup]:
    smallest = min((_reach(point) for point in shown if _reach(point)), default=1.0) / 100
    largest = max(_reach(point) for point in shown) or 1.0

    def place(value: float) -> float:
        return 0.5 + 0.5 * math.asinh(value / smallest) / math.asinh(largest / smallest)

    for point in shown:
        low, high = place(point.low or 0.0), place(point.high or 0.0)
        number = f"{point.low or 0.0:.4g} to {point.high or 0.0:.4g}, {point.grid}"
        drawn = track(bar(high - low, "a", start=low), bar(0.003, "limit", start=0.4985))
        yield element("li", element("code", point.path), element("span", number, class_="number"), drawn)


def _reach(point: PointRange) -> float:
    return max(abs(point.low or 0.0), abs(point.high or 0.0))
