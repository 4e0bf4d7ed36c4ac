"""RESULTS.md is what the recorded results generate, and benchmarks record what they print."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Final

import pytest

import results_page
from distributions import ROOT
from recorded import Result, Row, Table, add_option, command_line, from_json, recording, to_json

SCRIPTS: Final = [
    path
    for path in sorted(ROOT.glob("benchmarks/*.py"))
    if "= argparse.ArgumentParser(" in path.read_text("utf-8")
]

ORIGIN: Final = (
    "<sub>Measured with changes on top of `0123456789` on 2026-01-31. `floor` with `abcdef0123`. "
    "A processor, torch 2.13.0, 1 thread.</sub>"
)
RESULT: Final = Result(
    commands=("python benchmarks/mine.py --rounds 3",),
    commit="0123456789",
    tree="changed",
    date="2026-01-31",
    processor="A processor",
    torch="2.13.0",
    tables=(
        Table(
            title="A title",
            columns=("CPU s", "error"),
            rows=(Row("ours", ("0.1", "0.25")), Row("floor", ("0.05",), "abcdef0123")),
            notes=("A note.",),
            threads=1,
        ),
    ),
)


def test_page_is_generated() -> None:
    """RESULTS.md is what the outline and the files say; `nox -s results` writes it anew."""
    assert results_page.PAGE.read_text("utf-8") == results_page.page()


def test_every_result_is_shown_once() -> None:
    """No file is forgotten, and none is shown twice."""
    files = sorted(path.stem for path in results_page.FOLDER.glob("*.json"))
    assert sorted(results_page.places()) == files


def test_every_result_file_is_in_canonical_form() -> None:
    """Reading and writing a file changes nothing in it."""
    texts = [path.read_text("utf-8") for path in results_page.FOLDER.glob("*.json")]
    assert texts == [to_json(from_json(text)) for text in texts]


def test_result_is_shown_whole() -> None:
    """Command, title, cells, notes, commits and circumstances are all in what stands for a result."""
    assert from_json(to_json(RESULT)) == RESULT
    assert results_page.rendered(RESULT).splitlines() == [
        "    python benchmarks/mine.py --rounds 3",
        "",
        "    A title",
        "           CPU s  error",
        "    ours     0.1   0.25",
        "    floor   0.05",
        "    A note.",
        "",
        ORIGIN,
    ]


def test_recording_keeps_what_it_prints(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The file has the title, the columns, the rows and the notes of the table that was printed."""
    path = tmp_path / "folder" / "mine.json"
    with recording(path) as record:
        record.table("A title", "CPU s", "error")
        record.row("ours", "0.1", "0.25")
        record.note("A note.")
    table = from_json(path.read_text("utf-8")).tables[0]
    assert (table.title, table.columns, table.notes) == ("A title", ("CPU s", "error"), ("A note.",))
    assert table.rows == (Row("ours", ("0.1", "0.25")),)
    printed = capsys.readouterr().out.split()
    assert printed == ["A", "title", "CPU", "s", "error", "ours", "0.1", "0.25", "A", "note."]


def test_failed_run_records_nothing(tmp_path: Path) -> None:
    """A run that stops half-way leaves the figures of the last one."""
    path = tmp_path / "mine.json"
    with pytest.raises(KeyboardInterrupt), recording(path):
        raise KeyboardInterrupt
    assert not path.exists()


@pytest.mark.parametrize(
    "options",
    [
        ["--peer-path", "/somewhere", "--rounds", "3", "--result", "/elsewhere"],
        ["--peer-path=/somewhere", "--rounds", "3", "--result=/elsewhere"],
    ],
)
def test_command_names_no_place_of_one_machine(options: list[str]) -> None:
    """A peer's folder is called PEERS, and where the result goes is left out."""
    found = command_line(["/anywhere/benchmarks/mine.py", *options], "1")
    assert found == "OMP_NUM_THREADS=1 python benchmarks/mine.py --peer-path PEERS --rounds 3"


def test_results_of_trials_are_ignored_by_git() -> None:
    """Without `--result`, figures go below `out`, and published ones stay as they are."""
    parser = argparse.ArgumentParser()
    add_option(parser)
    assert (ROOT / "out") in parser.parse_args([]).result.parents
    assert "/out/" in (ROOT / ".gitignore").read_text("utf-8").splitlines()


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_records(path: Path) -> None:
    """A script with options has the one that says where its figures go, and writes them there."""
    text = path.read_text("utf-8")
    assert "add_option(parser)" in text
    assert "recording(" in text
