"""How the error of a quantized model enters and accumulates, block by block."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from tico_modules._page.charts import Axis, Series, figure, framed, grid_of, legend, line, svg
from tico_modules._page.comparison import Compared, ComparedBlock
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import share_text
from tico_modules._page.tables import section, table


def compared(comparison: Compared | None) -> Markup:
    """Return what `compare` has found."""
    if comparison is None:
        return Markup()
    text = (
        f"Over {comparison.rows:,} rows of the output the mean KL divergence from the float model is"
        f" {comparison.kl:.4g} nats, and {share_text(comparison.agreement, 1)} have the same first choice."
    )
    parts = [element("p", text), *_picture(comparison.lines), _table(comparison.lines)]
    return section("compared", "Against the float model", *parts)


def _picture(lines: Sequence[ComparedBlock]) -> Iterator[Markup]:
    own = Series(name="own error", values=tuple(_decibels(each.own) for each in lines), kind="a")
    together = Series(
        name="accumulated", values=tuple(_decibels(each.accumulated) for each in lines), kind="bad"
    )
    known = [value for series in (own, together) for value in series.values if value is not None]
    if len(lines) < 2 or not known:
        return
    axis = Axis.around(known)
    title = "Error of each block"
    text = (
        "By how many dB the float output exceeds the error: what each block adds by itself, and what has come"
        " together by then. Lower is worse."
    )
    shapes = joined([grid_of(axis, len(lines)), line(own, axis), line(together, axis)])
    drawing = svg(title, text, shapes, width=len(lines))
    ends = (lines[0].path, lines[-1].path)
    yield figure(title, text, legend(own, together), framed(axis, "dB", drawing, ends))


def _table(lines: Sequence[ComparedBlock]) -> Markup:
    heads = ("block", "own error", "dB", "accumulated", "dB")
    cells = [
        (
            element("code", each.path or "the model itself"),
            f"{each.own:.3g}",
            _decibel_text(each.own),
            f"{each.accumulated:.3g}",
            _decibel_text(each.accumulated),
        )
        for each in lines
    ]
    inside = table("Errors as shares of the squared norm of the float output", heads, cells, class_="numbers")
    return element("details", element("summary", "Every block as numbers"), inside)


def _decibels(share: float) -> float | None:
    return -10 * math.log10(share) if 0 < share < math.inf else None


def _decibel_text(share: float) -> str:
    value = _decibels(share)
    return "" if value is None else f"{value:.1f}"
