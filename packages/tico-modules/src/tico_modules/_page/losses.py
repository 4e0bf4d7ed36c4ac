"""Where the weights lose most: pictures over the depth of the model, and a list."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tico_modules._page.charts import Axis, Series, dots, figure, framed, svg, thinned
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import ratio_text
from tico_modules._page.rows import Row
from tico_modules._page.tables import bar, section, track

_LISTED: Final = 8
_HOPELESS: Final = 1.0


def losses(rows: Sequence[Row]) -> Markup:
    """Return what codes change of weights, module by module."""
    return section("losses", "Where weights lose most", *_sqnr(rows), *_gains(rows))


def _sqnr(rows: Sequence[Row]) -> Iterator[Markup]:
    known = [row for row in rows if row.sqnr is not None]
    if not known:
        return
    text = (
        "The signal-to-quantization-noise ratio (SQNR) of a weight says by how many decibels it exceeds what"
        " its codes change of it. Lower is worse; one bit more gives about 6 dB."
    )
    worst = sorted(known, key=lambda row: (row.sqnr or 0.0, row.line.path))[:_LISTED]
    yield element("p", text)
    yield element("h3", "The lowest")
    yield element("ol", *(_listed(row, known) for row in worst), class_="worst")
    if len(known) > 1:
        yield _over_depth(known)


def _listed(row: Row, known: Sequence[Row]) -> Markup:
    highest = max(each.sqnr or 0.0 for each in known) or 1.0
    share = max(0.0, (row.sqnr or 0.0) / highest)
    number = element("span", f"{ratio_text(row.sqnr)} dB", class_="number")
    what = element("span", f"{row.line.weight}, {' → '.join(row.algorithms)}", class_="what")
    return element("li", element("code", row.line.path), number, track(bar(share, "bad")), what)


def _over_depth(known: Sequence[Row]) -> Markup:
    places, values = thinned([row.sqnr for row in known])
    labels = [known[place].line.path for place in places]
    axis = Axis.around([value for value in values if value is not None])
    title = "Weight SQNR over depth"
    text = f"{len(known):,} weights in the order of the model, in dB. " + _spread(
        [r.sqnr or 0.0 for r in known]
    )
    text += " Of neighbours the lowest is shown." if len(values) < len(known) else ""
    drawing = svg(title, text, dots([Series(name="", values=values)], axis, labels), width=len(values))
    return figure(title, text, framed(axis, "dB", drawing, (labels[0], labels[-1])))


def _spread(values: Sequence[float]) -> str:
    ordered = sorted(values)
    middle = ordered[len(ordered) // 2]
    return f"Lowest {ordered[0]:.1f}, median {middle:.1f}, highest {ordered[-1]:.1f}."


def _gains(rows: Sequence[Row]) -> Iterator[Markup]:
    known = [row for row in rows if row.gain is not None]
    if not known:
        return
    places, values = thinned([row.gain for row in known], lowest=False)
    labels = [known[place].line.path for place in places]
    worse = sum((row.gain or 0.0) > _HOPELESS for row in known)
    title = "Loss against rounding to nearest"
    text = (
        "What the algorithm has left of the loss that rounding to nearest would have on the calibration data:"
        f" 1 is no gain, lower is better. Above 1: {worse:,} of {len(known):,} weights."
    )
    axis = Axis.around([1.0, *(value for value in values if value is not None)], zero=True)
    shapes = joined(
        [
            element("path", d=f"M0 {axis.height(1.0):.4g}H{len(values)}", class_="limit"),
            dots([Series(name="", values=values, kind="b")], axis, labels),
        ]
    )
    drawing = svg(title, text, shapes, width=len(values))
    yield figure(title, text, framed(axis, "share", drawing, (labels[0], labels[-1])))
