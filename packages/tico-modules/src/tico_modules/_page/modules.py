"""The table of every module."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from tico_modules._facts.layer_report import SQNR
from tico_modules._page.markup import Markup, element
from tico_modules._page.numbers import plural, ratio_text
from tico_modules._page.rows import LOSS, NEAREST, Row
from tico_modules._page.tables import section, table

_HEADS: Final = (
    *("module", "kind", "algorithm", "weight", "activations", "bytes before", "after", "SQNR dB"),
    *("loss / nearest", "seconds", "notes"),
)
_FEW: Final = 60
_MOST: Final = 6000
_NOTES: Final = 300


def modules(rows: Sequence[Row]) -> Markup:
    """Return a row for every module; of very many those with codes or the most bytes."""
    shown = _shown(rows)
    text = f"All {plural(len(rows), 'module')}"
    if len(shown) < len(rows):
        text = f"{len(shown):,} of {len(rows):,} modules, those with the most bytes; the JSON has all"
    inside = table(text, _HEADS, (_cells(row) for row in shown), class_="all")
    controls = element("div", id="controls", hidden="hidden")
    summary = element("summary", text)
    opened = {"open": "open"} if len(rows) <= _FEW else {}
    return section("modules", "Every module", element("details", summary, controls, inside, **opened))


def _shown(rows: Sequence[Row]) -> Sequence[Row]:
    if len(rows) <= _MOST:
        return rows
    largest = sorted(range(len(rows)), key=lambda place: -(rows[place].size.before or 0))[:_MOST]
    return [rows[place] for place in sorted(largest)]


def _cells(row: Row) -> list[str]:
    line, size = row.line, row.size
    return [
        line.path,
        line.module,
        " → ".join(row.algorithms),
        line.weight,
        line.activation,
        f"{size.before:,}" if size.before else "",
        f"{size.after:,}" if size.after else "",
        ratio_text(row.sqnr),
        ratio_text(row.gain, 3),
        ratio_text(row.seconds or None, 2),
        _notes(row),
    ]


def _notes(row: Row) -> str:
    told = [row.line.reason] if row.line.reason else []
    known = {SQNR, *({LOSS, NEAREST} if row.gain is not None else ())}
    told += [f"{name} {value:.4g}" for name, value in row.figures.items() if name not in known]
    text = "; ".join(told)
    return text if len(text) <= _NOTES else f"{text[:_NOTES]}…"
