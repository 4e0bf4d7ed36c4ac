"""Modules that differ in the numbers of their paths alone, each kind in one row of a table."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from tico_modules._page.charts import Axis, Series, line, svg, thinned
from tico_modules._page.markup import Markup, element
from tico_modules._page.numbers import bytes_text, plural, ratio_text
from tico_modules._page.rows import Row
from tico_modules._page.tables import section, table

_NUMBERS: Final = re.compile(r"(?<![^.])\d+(?![^.])")
_MOST: Final = 200
_HEADS: Final = ("modules", "before", "after", "lowest", "median", "over depth", "weight", "activations")


def roles(rows: Sequence[Row]) -> Markup:
    """Return the table of what was made of modules that are alike."""
    found = _alike(row for row in rows if not row.is_float)
    values = [row.sqnr for row in rows if row.sqnr is not None]
    axis = Axis.around(values)
    cells = [_cells(alike, axis) for alike in found[:_MOST]]
    text = "Modules that differ in the numbers of their paths alone share a row."
    text += " Lowest, median and line are of the weight SQNR, in dB; all lines have one scale."
    left = len(found) - len(cells)
    text += f" {left:,} more rows are left out here; the table of all modules has them." if left else ""
    return section("roles", "What became of each kind of module", *_filled(text, cells))


def _filled(text: str, cells: Sequence[Sequence[str]]) -> Sequence[Markup]:
    if not cells:
        return []
    return [element("p", text), table("Kinds of modules", _HEADS, cells, class_="roles")]


def _alike(rows: Iterable[Row]) -> list[list[Row]]:
    """Return rows that are alike together, in the order of their firsts."""
    found: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        found.setdefault((row.role, row.line.weight, row.line.activation), []).append(row)
    return list(found.values())


def _cells(alike: Sequence[Row], axis: Axis) -> list[str]:
    known = sorted(row.sqnr for row in alike if row.sqnr is not None)
    first = alike[0].line
    return [
        _named(alike),
        _size(sum(row.size.before or 0 for row in alike)),
        _size(sum(row.size.after for row in alike)),
        ratio_text(known[0] if known else None),
        ratio_text(known[len(known) // 2] if known else None),
        _spark(alike, axis) if len(known) > 1 else Markup(),
        first.weight,
        first.activation,
    ]


def _size(size: int) -> str:
    return bytes_text(size) if size else ""


def _named(alike: Sequence[Row]) -> Markup:
    path = element("code", places(alike))
    if len(alike) == 1:
        return path
    return element("span", path, element("small", f" {plural(len(alike), 'module')}"))


def places(alike: Sequence[Row]) -> str:
    """Return the paths of rows of one role, with ``first…last`` where their numbers differ."""
    numbers = [_NUMBERS.findall(row.line.path) for row in alike]
    ranges = iter([_range(map(int, column)) for column in zip(*numbers, strict=True)])
    return _NUMBERS.sub(lambda _: next(ranges), alike[0].line.path)


def _range(numbers: Iterable[int]) -> str:
    found = sorted(set(numbers))
    return str(found[0]) if len(found) == 1 else f"{found[0]}…{found[-1]}"


def _spark(alike: Sequence[Row], axis: Axis) -> Markup:
    _, values = thinned([row.sqnr for row in alike])
    known = [row for row in alike if row.sqnr is not None]
    worst = min(known, key=lambda row: row.sqnr or 0.0)
    text = f"Lowest {ratio_text(worst.sqnr)} dB in {worst.line.path}"
    shapes = line(Series(name="", values=values), axis)
    return svg("Weight SQNR over depth", text, shapes, width=len(values), class_="spark")
