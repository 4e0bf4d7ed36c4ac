"""Markdown fitted to the width of a terminal: tables that have room, and lists of what does not."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Final

_CELLS: Final = re.compile(r"(?<!\\)\|")
_NARROWEST: Final = 20


def fitted(markdown: str, width: int) -> str:
    r"""Return `markdown` with no line longer than `width`, but for words that are longer themselves.

    A table stays one where each of its words fits into its column. Otherwise each row is a small paragraph:
    its first cell, then each other cell that holds something, with the name of its column.

    >>> print(fitted("| name | bits |\n|---|---|\n| fc | 4 |\n\nthat is all", 40))
     name  bits
     fc    4
    <BLANKLINE>
    that is all
    """
    width = max(width, _NARROWEST)
    parts: list[str] = []
    for is_table, group in groupby(markdown.splitlines(), lambda line: line.startswith("|")):
        lines = [*group]
        parts += _table(lines, width) if is_table else [_wrapped(line, width) for line in lines]
    return "\n".join(parts)


def _wrapped(line: str, width: int, indent: str = "") -> str:
    text = textwrap.wrap(
        line, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return "\n".join(text)


def _table(lines: Sequence[str], width: int) -> Iterator[str]:
    head, _, *rows = [_cells(line) for line in lines]
    columns = [*zip(head, *rows, strict=True)]
    least = sum(max(len(word) for cell in column for word in (cell.split() or [""])) for column in columns)
    if least + 2 * len(head) <= width:
        yield _drawn(head, rows, width)
    else:
        for row in rows:
            yield from _paragraph(head, row, width)


def _cells(line: str) -> list[str]:
    return [cell.strip().replace(r"\|", "|") for cell in _CELLS.split(line)[1:-1]]


def _drawn(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> str:
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*head, box=None)
    for row in rows:
        drawn.add_row(*row)
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False, markup=False)
    with console.capture() as capture:
        console.print(drawn)
    return "\n".join(line.rstrip() for line in capture.get().splitlines())


def _paragraph(head: Sequence[str], row: Sequence[str], width: int) -> Iterator[str]:
    yield _wrapped(row[0], width, "  ")
    for name, cell in zip(head[1:], row[1:], strict=True):
        if cell:
            yield textwrap.indent(_wrapped(f"{name}: {cell}", width - 2, "  "), "  ")
