"""What the grids of activations see of data, and how much of it they clip."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tico_modules._page.charts import Axis, columns, svg
from tico_modules._page.comparison import Seen, SeenBin, SeenGrid
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import share_text
from tico_modules._page.tables import section

_SHOWN: Final = 12
_OCTAVES: Final = 12
"""How many octaves below the largest value have bars of their own."""


def seen_points(seen: Seen | None) -> Markup:
    """Return histograms of what came to the grids that clip the most, with the ranges of these."""
    known = [] if seen is None else [each for each in seen.points if each.bins]
    if not known:
        return Markup()
    ordered = sorted(known, key=lambda each: (-(each.share_clipped or 0.0), each.path))
    clipping = sum(bool(each.share_clipped) for each in known)
    text = (
        f"{clipping:,} of {len(known):,} grids clip some of the data; the ones that clip the most come first."
        " The scale is logarithmic on both sides of 0, with two bars an octave; bars beyond the grid have the"
        " colour of errors."
    )
    pictures = joined(map(_picture, ordered[:_SHOWN]))
    return section(
        "seen", "What activations are", element("p", text), element("div", pictures, class_="small")
    )


def _picture(point: SeenGrid) -> Markup:
    bars = _bars(point.bins)
    inside = [float(each.count) if _is_inside(each, point) else 0.0 for each in bars]
    outside = [float(each.count) - kept for each, kept in zip(bars, inside, strict=True)]
    axis = Axis.around([*inside, *outside], zero=True)
    share = point.share_clipped
    text = "The grid follows the data" if share is None else f"{share_text(share, 1)} clipped"
    text += "" if point.low is None else f" by a grid from {point.low:.4g} to {point.high or 0.0:.4g}"
    shapes = joined([columns(inside, axis), columns(outside, axis, "bad")])
    ends = (f"{bars[0].low:.3g}", f"{bars[-1].high:.3g}")
    return element(
        "figure",
        element("h3", point.path),
        svg(point.path, text, shapes, width=len(bars)),
        element("div", *(element("span", end) for end in ends), class_="below"),
        element("figcaption", f"{text}; {point.grid}"),
    )


def _is_inside(each: SeenBin, point: SeenGrid) -> bool:
    """Whether some of a bin is on the grid."""
    if point.low is None or point.high is None:
        return True
    return each.high > point.low and each.low < point.high


def _bars(bins: Sequence[SeenBin]) -> Sequence[SeenBin]:
    """Return the bins with what is close to 0 in one of them, and with the empty ones between them."""
    reach = max(max(abs(each.low), abs(each.high)) for each in bins)
    least = reach / 2**_OCTAVES
    near = sum(each.count for each in bins if max(abs(each.low), abs(each.high)) <= least)
    far = [each for each in bins if max(abs(each.low), abs(each.high)) > least]
    below, above = [each for each in far if each.low < 0], [each for each in far if each.low >= 0]
    middle = _Bar(-least if below else 0.0, least, near)
    return [*_filled(below), middle, *_filled(above)]


class _Bar:
    def __init__(self, low: float, high: float, count: int) -> None:
        self.low, self.high, self.count = low, high, count


def _filled(bins: Sequence[SeenBin]) -> list[SeenBin]:
    """Return bins with an empty one in each gap between two of them."""
    found: list[SeenBin] = []
    for each in bins:
        if found and found[-1].high != each.low:
            found.append(_Bar(found[-1].high, each.low, 0))
        found.append(each)
    return found
