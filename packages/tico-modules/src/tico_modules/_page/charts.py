"""Pictures as inline SVG, which stretch to the width that there is.

Only shapes are drawn in SVG. Its texts would stretch as well, so that axes are written in HTML around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import attrs

from tico_modules._page.markup import Markup, element, joined

_MOST_TITLES: Final = 400
_COLUMNS: Final = 300
_TICKS: Final = 4


@attrs.frozen(kw_only=True)
class Series:
    """Values along the axis of a chart, in order; None leaves a gap.

    Attributes:
        name: what they are, for the legend.
        values: one for each place.
        kind: the class of the marks, which says their colour: ``a``, ``b`` or ``bad``.
    """

    name: str
    values: tuple[float | None, ...]
    kind: str = "a"


@attrs.frozen(kw_only=True)
class Axis:
    """The values that an axis spans, and where it is marked."""

    low: float
    high: float
    ticks: tuple[float, ...]

    @classmethod
    def around(cls, values: Sequence[float], *, zero: bool = False) -> Axis:
        """Return an axis over `values` that begins and ends at round numbers, and at 0 on demand.

        >>> Axis.around([3.0, 17.0])
        Axis(low=0.0, high=20.0, ticks=(0.0, 5.0, 10.0, 15.0, 20.0))
        """
        low, high = min(values, default=0.0), max(values, default=1.0)
        low = min(low, 0.0) if zero else low
        width = (high - low) or abs(high) or 1.0
        step = 10.0 ** math.floor(math.log10(width / _TICKS))
        step *= next(factor for factor in (1, 2, 2.5, 5, 10) if width / (step * factor) <= _TICKS)
        first, last = math.floor(low / step), math.ceil(high / step)
        last = max(last, first + 1)
        ticks = tuple(number * step for number in range(first, last + 1))
        return cls(low=ticks[0], high=ticks[-1], ticks=ticks)

    def height(self, value: float) -> float:
        """Return where `value` is, in hundredths of the height from the top."""
        return 100 - 100 * (value - self.low) / (self.high - self.low)


def figure(title: str, text: str, *parts: Markup) -> Markup:
    """Return a picture with a heading and what is to be seen on it."""
    return element("figure", element("h3", title), element("figcaption", text), *parts, class_="chart")


def svg(title: str, text: str, shapes: Markup, *, width: float = 100, class_: str = "plot") -> Markup:
    """Return a drawing `width` by 100, with what a screen reader says of it."""
    return element(
        "svg",
        element("title", title),
        element("desc", text),
        shapes,
        role="img",
        aria_label=f"{title}. {text}",
        viewBox=f"0 0 {width:g} 100",
        preserveAspectRatio="none",
        class_=class_,
    )


def framed(axis: Axis, unit: str, drawing: Markup, ends: Sequence[str]) -> Markup:
    """Return a drawing with the marks of its vertical axis, and texts below its ends."""
    marks = joined(element("span", f"{tick:g}", style=f"top:{axis.height(tick):.4g}%") for tick in axis.ticks)
    below = element("div", *(element("span", each) for each in ends), class_="below")
    return element(
        "div",
        element("div", unit, class_="unit"),
        element("div", marks, class_="marks", aria_hidden="true"),
        drawing,
        below,
        class_="frame",
    )


def grid_of(axis: Axis, width: float) -> Markup:
    """Return a line across for each mark of `axis`."""
    steps = " ".join(f"M0 {axis.height(tick):.4g}H{width:g}" for tick in axis.ticks)
    return element("path", d=steps, class_="grid")


def dots(series: Sequence[Series], axis: Axis, labels: Sequence[str]) -> Markup:
    """Return a dot for each value, with its label as a tooltip unless there are many."""
    width = max((len(each.values) for each in series), default=1) or 1
    return joined([grid_of(axis, width), *(_dots(each, axis, labels) for each in series)])


def _dots(series: Series, axis: Axis, labels: Sequence[str]) -> Markup:
    marks = [
        (place, f"M{place + 0.5:g} {axis.height(value):.4g}h0", value)
        for place, value in enumerate(series.values)
        if value is not None
    ]
    kind = f"dot {series.kind}"
    if len(marks) > _MOST_TITLES:
        return element("path", d="".join(mark for _, mark, _ in marks), class_=f"{kind} many")
    return joined(
        element("path", element("title", f"{labels[place]}: {value:.4g}"), d=mark, class_=kind)
        for place, mark, value in marks
    )


def line(series: Series, axis: Axis) -> Markup:
    """Return the values joined by a line, which breaks where there is none.

    >>> line(Series(name="", values=(0.0, None, 1.0)), Axis.around([0.0, 1.0]))
    '<path d="M0.5 100h0M2.5 0h0" class="line a"></path>'
    """
    steps, begun = [], False
    for place, value in enumerate(series.values):
        if value is not None:
            steps.append(f"{'L' if begun else 'M'}{place + 0.5:g} {axis.height(value):.4g}")
            alone = place + 1 == len(series.values) or series.values[place + 1] is None
            steps.append("h0" if alone and not begun else "")
        begun = value is not None
    return element("path", d="".join(steps), class_=f"line {series.kind}")


def columns(values: Sequence[float], axis: Axis, kind: str = "a") -> Markup:
    """Return a column for each value, from 0 up.

    >>> columns([1.0], Axis.around([0.0, 1.0]))
    '<path d="M0.08 100V0h0.84V100z" class="column a"></path>'
    """
    zero = axis.height(0.0)
    steps = "".join(
        f"M{place + 0.08:g} {zero:.4g}V{axis.height(value):.4g}h0.84V{zero:.4g}z"
        for place, value in enumerate(values)
    )
    return element("path", d=steps, class_=f"column {kind}")


def legend(*series: Series) -> Markup:
    """Return the names of `series`, each beside its colour."""
    names = (element("span", each.name, class_=f"key {each.kind}") for each in series)
    return element("p", *names, class_="legend")


def thinned(
    values: Sequence[float | None], *, lowest: bool = True
) -> tuple[tuple[int, ...], tuple[float | None, ...]]:
    """Return at most 600 of `values`, and their places: of neighbours the lowest, or the highest.

    >>> thinned([2.0, None, 1.0])
    ((0, 1, 2), (2.0, None, 1.0))
    """
    step = -(-len(values) // (2 * _COLUMNS)) or 1
    places = []
    for first in range(0, len(values), step):
        known = [place for place in range(first, min(first + step, len(values))) if values[place] is not None]
        best = min if lowest else max
        places.append(best(known, key=lambda place: values[place] or 0.0) if known else first)
    return tuple(places), tuple(values[place] for place in places)
