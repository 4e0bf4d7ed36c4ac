"""A run of the model zoo that was interrupted goes on after the rows that it has done."""

from __future__ import annotations

from pathlib import Path

import pytest

from zoo import Cell, KeptRows, Row
from zoo import _kept_rows as module

ROW = {"strict": Cell("40 dB"), "reload": Cell("refused", "it is none of ours")}


def _never() -> Row:
    raise AssertionError("the row is made again")


def _kept(folder: Path, *columns: str, resume: bool = True) -> KeptRows:
    return KeptRows(folder / "zoo.json", columns or tuple(ROW), resume=resume)


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "commit_of_sources", lambda: ("0123456789", "clean"))


def test_row_is_made_once(tmp_path: Path) -> None:
    """A run of the same commit and columns finds it, reasons and all."""
    assert _kept(tmp_path).get("Llama", lambda: ROW) == ROW
    assert _kept(tmp_path).get("Llama", _never) == ROW


@pytest.mark.parametrize("origin", [("fedcba9876", "clean"), ("0123456789", "changed")])
def test_rows_of_other_code_are_made_again(
    tmp_path: Path, origin: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of another commit, and all where changes on top of one say that it is not the code."""
    _kept(tmp_path).get("Llama", dict)
    monkeypatch.setattr(module, "commit_of_sources", lambda: origin)
    assert _kept(tmp_path).get("Llama", lambda: ROW) == ROW


def test_rows_of_other_columns_are_made_again(tmp_path: Path) -> None:
    """A row has the columns that are asked for."""
    _kept(tmp_path, "strict").get("Llama", dict)
    assert _kept(tmp_path).get("Llama", lambda: ROW) == ROW


def test_rows_are_dropped(tmp_path: Path) -> None:
    """Where nobody asks to go on, and at the end."""
    _kept(tmp_path).get("Llama", lambda: ROW)
    assert _kept(tmp_path, resume=False).get("Llama", dict) == {}
    _kept(tmp_path).drop()
    assert list(tmp_path.iterdir()) == []
