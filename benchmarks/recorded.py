"""Tables that a benchmark prints as it goes, and the JSON file that keeps them with what produced them.

A script adds ``--result FILE`` to its options with `add_option`, and prints through the `Recording` that
`recording` opens. The file goes below ``out/benchmarks`` unless the option names another place. Published
figures lie in ``benchmarks/results``, where `results_page` finds them.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final, Literal

import attrs
import torch

ROOT: Final = Path(__file__).parents[1]
UNPUBLISHED: Final = ROOT / "out" / "benchmarks"

# The options whose values are places on one machine; None stands for an option that is left out.
_PLACES: Final = {"--folder": None, "--peer-path": "PEERS", "--result": None, "--vllm-python": "PROGRAM"}

# Writing results changes neither of these in a way that could change a figure.
_NO_SOURCES: Final = (":!benchmarks/results", ":!benchmarks/RESULTS.md")


@attrs.frozen
class Row:
    """The cells of one candidate as they were printed; `commit` where it is not that of the whole result."""

    name: str
    cells: tuple[str, ...]
    commit: str | None = None


@attrs.frozen(kw_only=True)
class Table:
    """Rows under column titles, with the lines that were printed below them."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...] = ()
    notes: tuple[str, ...] = ()
    threads: int | None = None


@attrs.frozen(kw_only=True)
class Result:
    """Everything that one run printed, and where, when and from which code.

    `tree` says how `commit` relates to the code that was measured: it is that code (``clean``), the code had
    changes on top of it (``changed``), or it only brought the figures in (``unknown``).
    """

    commands: tuple[str, ...]
    commit: str
    tree: Literal["clean", "changed", "unknown"]
    date: str
    processor: str | None = None
    torch: str | None = None
    tables: tuple[Table, ...] = ()


@attrs.define
class Recording:
    """Prints tables row by row, and keeps them."""

    tables: list[Table] = attrs.field(factory=list)
    _width: int = attrs.field(init=False, default=24)

    def table(self, title: str, *columns: str, width: int = 24) -> None:
        """Start a table: print its title and its header, the names of rows in `width` characters."""
        self._width = width
        self.tables.append(Table(title=title, columns=columns, threads=torch.get_num_threads()))
        print(f"\n{title}" if title else "")
        self._print("", columns)

    def row(self, name: str, *cells: str) -> None:
        """Print a row of the last table."""
        table = self.tables[-1]
        self.tables[-1] = attrs.evolve(table, rows=(*table.rows, Row(name, cells)))
        self._print(name, cells)

    def note(self, text: str) -> None:
        """Print a line below the last table."""
        table = self.tables[-1]
        self.tables[-1] = attrs.evolve(table, notes=(*table.notes, text))
        print(text, flush=True)

    def _print(self, name: str, cells: Sequence[str]) -> None:
        widths = (max(9, len(column)) for column in self.tables[-1].columns)
        line = "".join(f"  {cell:>{width}}" for cell, width in zip(cells, widths, strict=False))
        print(f"{name:{self._width}}{line}", flush=True)


def add_option(parser: argparse.ArgumentParser) -> None:
    """Add ``--result FILE``, with a place below ``out`` as its default."""
    path = UNPUBLISHED / f"{Path(sys.argv[0]).stem}.json"
    parser.add_argument(
        "--result", type=Path, default=path, help="the JSON file to write (default: below out)"
    )


@contextmanager
def recording(path: Path, earlier: Sequence[str] = ()) -> Iterator[Recording]:
    """Yield a recording, and write its tables to `path` unless the run fails.

    `earlier` are the commands of runs whose figures are among those of this one.
    """
    started = dt.datetime.now(dt.UTC).date().isoformat()
    commit, tree = commit_of_sources()
    recorded = Recording()
    yield recorded
    command = command_line(sys.argv, os.environ.get("OMP_NUM_THREADS"))
    result = Result(
        commands=tuple(dict.fromkeys((*earlier, command))),
        commit=commit,
        tree=tree,
        date=started,
        processor=_processor(),
        torch=torch.__version__,
        tables=tuple(recorded.tables),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(to_json(result), encoding="utf-8")


def commands_of(path: Path) -> tuple[str, ...]:
    """Return the commands of the result at `path`; none where there is no such file."""
    return from_json(path.read_text(encoding="utf-8")).commands if path.exists() else ()


def to_json(result: Result) -> str:
    """Return the text of the file of `result`, without fields that are not known."""
    kept = attrs.asdict(result, filter=lambda _, value: value is not None)
    return json.dumps(kept, indent=1, ensure_ascii=False) + "\n"


def from_json(text: str) -> Result:
    """Return the result whose file holds `text`."""
    fields = json.loads(text)
    tables = []
    for each in fields["tables"]:
        rows = tuple(Row(row["name"], tuple(row["cells"]), row.get("commit")) for row in each["rows"])
        lines = {name: tuple(each.get(name, ())) for name in ("columns", "notes")}
        tables.append(Table(**each | lines | {"rows": rows}))
    return Result(**fields | {"commands": tuple(fields["commands"]), "tables": tuple(tables)})


def command_line(argv: Sequence[str], threads: str | None) -> str:
    """Return the command that `argv` stands for, without the places of this machine."""
    words = ["python", f"benchmarks/{Path(argv[0]).name}"]
    given = iter(argv[1:])
    for word in given:
        option, _, value = word.partition("=")
        if option not in _PLACES:
            words.append(word)
            continue
        if not value:
            next(given, None)
        place = _PLACES[option]
        words += [option, place] if place else []
    variables = [f"OMP_NUM_THREADS={threads}"] if threads else []
    return shlex.join([*variables, *words])


def commit_of_sources() -> tuple[str, Literal["clean", "changed", "unknown"]]:
    """Return the commit of this repository, and whether any source differs from it."""
    git = shutil.which("git")
    if git is None or not (ROOT / ".git").exists():
        return "none", "unknown"
    commit = _printed(git, "rev-parse", "--short=10", "HEAD")
    return commit, "changed" if _printed(git, "status", "--porcelain", "--", ".", *_NO_SOURCES) else "clean"


def _printed(*command: str) -> str:
    return subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()


def _processor() -> str:
    """Return the name of the processor, as Linux gives it where there is Linux."""
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
