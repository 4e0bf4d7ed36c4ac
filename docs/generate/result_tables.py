"""Tables of recorded benchmarks as Markdown, so that no figure on the site is copied by hand."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, TypedDict

COMMANDS: Final = re.compile(r"^<!-- measured by: (?P<name>[\w-]+) -->$", re.MULTILINE)
PLACE: Final = re.compile(r"^<!-- result: (?P<name>[\w-]+)(?: \| (?P<title>.+?))? -->$", re.MULTILINE)


class _Row(TypedDict):
    name: str
    cells: list[str]


class _Table(TypedDict):
    title: str
    columns: list[str]
    rows: list[_Row]


def with_results(text: str, folder: Path) -> str:
    """Return `text` with tables in the place of lines ``<!-- result: NAME | TITLE -->``.

    NAME is a file of `folder`; TITLE, where it is given, a part of the titles of the tables to show. In the
    place of ``<!-- measured by: NAME -->`` stand the commands of the file instead.

    Raises:
        ValueError: no table of the file has such a title.
    """
    shown = PLACE.sub(lambda found: _shown(folder, found["name"], found["title"] or ""), text)
    return COMMANDS.sub(lambda found: _commands(folder, found["name"]), shown)


def _recorded(folder: Path, name: str) -> Mapping[str, object]:
    found: Mapping[str, object] = json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))
    return found


def _commands(folder: Path, name: str) -> str:
    recorded = _recorded(folder, name)
    commands: list[str] = json.loads(json.dumps(recorded["commands"]))
    return "\n".join(["```bash", *commands, "```", "", f"<small>{_origin(recorded, name)}</small>"])


def _origin(recorded: Mapping[str, object], name: str) -> str:
    """Return the machine, the version of torch, the date, the commit and the file of a result."""
    known = [str(recorded[key]) for key in ("processor",) if key in recorded]
    torch = [f"torch {recorded['torch']}"] if "torch" in recorded else []
    origin = ", ".join([*known, *torch, str(recorded["date"]), f"commit `{recorded['commit']}`"])
    return f"{origin}. All figures: `benchmarks/results/{name}.json`."


def _shown(folder: Path, name: str, title: str) -> str:
    recorded = _recorded(folder, name)
    every: list[_Table] = json.loads(json.dumps(recorded["tables"]))
    tables = [table for table in every if title in table["title"]]
    if not tables:
        raise ValueError(f"no table of {name}.json has {title!r} in its title")
    shown = "\n\n".join("\n".join(_lines(table, name)) for table in tables)
    return f"{shown}\n\n<small>{_origin(recorded, name)}</small>"


def _lines(table: _Table, name: str) -> Iterator[str]:
    if table["title"]:
        yield f"*{table['title']}*"
        yield ""
    width = len(table["columns"])
    yield _line(["", *table["columns"]])
    yield _line(["---", *["--:"] * width])
    for row in table["rows"]:
        yield _line([row["name"], *row["cells"], *[""] * (width - len(row["cells"]))])


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
