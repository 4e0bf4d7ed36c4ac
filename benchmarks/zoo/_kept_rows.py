"""Rows of the table that are kept as they are done, so that a run that was interrupted can go on."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recorded import commit_of_sources
from zoo._cell import Cell

Row = Mapping[str, Cell]


class KeptRows:
    """A file of rows beside a result, a line each.

    Args:
        result: the file that the whole table is going to be written to.
        columns: the columns of each row.
        resume: whether the rows of an earlier run are used, which has to be of the same
            commit and columns.
    """

    def __init__(self, result: Path, columns: Sequence[str], *, resume: bool) -> None:
        self._path = result.with_suffix(".rows.jsonl")
        commit, tree = commit_of_sources()
        self._origin = [commit, *columns]
        may_read = resume and tree == "clean" and self._path.exists()  # else a commit does not name the code
        self._rows = self._read() if may_read else {}
        if not self._rows:
            self.drop()

    def get(self, name: str, make: Callable[[], Row]) -> Row:
        """Return the row `name` that is kept, or else the one that `make` returns, which is then kept."""
        if name not in self._rows:
            self._rows[name] = make()
            self._write(name)
        return self._rows[name]

    def drop(self) -> None:
        """Keep nothing any more."""
        self._path.unlink(missing_ok=True)

    def _read(self) -> dict[str, Row]:
        lines = [json.loads(line) for line in self._path.read_text(encoding="utf-8").splitlines()]
        return {
            each["name"]: {column: Cell(*cell) for column, cell in each["cells"].items()}
            for each in lines
            if each["origin"] == self._origin
        }

    def _write(self, name: str) -> None:
        cells = {column: [cell.shown, cell.reason] for column, cell in self._rows[name].items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            line = json.dumps({"name": name, "origin": self._origin, "cells": cells}, ensure_ascii=False)
            file.write(f"{line}\n")
