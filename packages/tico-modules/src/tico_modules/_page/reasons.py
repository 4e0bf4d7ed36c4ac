"""What stayed in float and why, and what else there is to know of modules."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from tico_modules._page.markup import Markup, element
from tico_modules._page.numbers import bytes_text, plural
from tico_modules._page.rows import Row
from tico_modules._page.tables import section

_DIGITS: Final = re.compile(r"\d+")
_MOST: Final = 40
_NAMED: Final = 5


def reasons(rows: Sequence[Row]) -> Markup:
    """Return the reasons, each once, with the modules that it holds for."""
    left = list(_listed(row for row in rows if row.is_left))
    noted = list(_listed(row for row in rows if not row.is_float and row.line.reason))
    return section(
        "float",
        "What stayed in float, and why",
        *([element("ul", *left, class_="reasons")] if left else [element("p", "Nothing stayed in float.")]),
        *([element("h3", "Notes on quantized modules")] if noted else []),
        *([element("ul", *noted, class_="reasons")] if noted else []),
    )


def _listed(rows: Iterable[Row]) -> Iterator[Markup]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(_DIGITS.sub("#", row.line.reason), []).append(row)
    ordered = sorted(found.values(), key=lambda own: (-sum(row.size.after for row in own), own[0].line.path))
    for own in ordered[:_MOST]:
        yield _item(own)
    if len(ordered) > _MOST:
        yield element("li", f"{len(ordered) - _MOST:,} more, each in the table of all modules.")


def _item(rows: Sequence[Row]) -> Markup:
    reason = rows[0].line.reason if len({row.line.reason for row in rows}) == 1 else _span(rows)
    size = sum(row.size.after for row in rows)
    text = f"{plural(len(rows), 'module')}, {bytes_text(size)}"
    names = ", ".join(row.line.path or "the model itself" for row in rows[:_NAMED])
    names += f" and {len(rows) - _NAMED:,} more" if len(rows) > _NAMED else ""
    return element(
        "li",
        element("strong", reason or "no reason is given"),
        element("span", text, class_="number"),
        element("small", names),
    )


def _span(rows: Sequence[Row]) -> str:
    """Return the reason of rows that differ in its numbers, with their ranges."""
    numbers = [list(map(int, _DIGITS.findall(row.line.reason))) for row in rows]
    ranges = iter([(min(column), max(column)) for column in zip(*numbers, strict=True)])

    def span(_: re.Match[str]) -> str:
        low, high = next(ranges)
        return f"{low}" if low == high else f"{low} to {high}"

    return _DIGITS.sub(span, rows[0].line.reason)
