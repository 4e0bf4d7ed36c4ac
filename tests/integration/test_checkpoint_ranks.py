"""From folder to folder on several processes: the files of one, whatever happens to some of them."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from checkpoint_ranks import BATCHES, quantize
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.solvers import solve_by

SCRIPT = Path(__file__).parents[1] / "support" / "checkpoint_ranks.py"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="processes are forked")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where three processes have worked, of which the last was killed in the end."""
    made = tmp_path_factory.mktemp("ranks")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(made)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return made


@pytest.fixture(scope="module")
def found(folder: Path) -> list[dict[str, str]]:
    """Return what each was told."""
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(3)]


def files(folder: Path) -> dict[str, bytes]:
    """Return the content of each file of a folder, and that of no other folder in it."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_three_ranks_write_the_files_of_one_process(folder: Path) -> None:
    """With a list of configs, and though the second rank has no data and the third has most."""
    assert files(folder / "list on 3") == files(folder / "expected list")


def test_two_ranks_go_on_where_one_process_was_interrupted(folder: Path) -> None:
    """Each takes over what a search has found in the first block, and the files are those of one run."""
    assert files(folder / "search on 2") == files(folder / "expected search")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("source", "LifecycleError: rank 0 and rank 1 were given different checkpoints"),
        ("config", "LifecycleError: rank 0 and rank 1 were given different configs"),
        ("batches", "CalibrationError: rank 0 and rank 1 have 1 batch in common"),
        ("out_dir", "ConfigError: out_dir must be one folder of a file system that all ranks share, got "),
    ],
)
def test_ranks_that_cannot_work_together_are_told_so_and_leave_nothing(
    found: list[dict[str, str]], folder: Path, name: str, said: str
) -> None:
    """Both of them, in the same words."""
    assert [each[name][: len(said)] for each in found[1:]] == [said] * 2
    assert not list(folder.glob("refused*"))


def test_a_folder_that_is_taken_is_told_by_the_rank_that_writes(found: list[dict[str, str]]) -> None:
    """The other one is told which rank it was, and why."""
    one, other = (each["taken"] for each in found[1:])
    assert one.startswith("ConfigError: out_dir must be a folder that is not there yet")
    assert other.startswith(f"LifecycleError: rank 0 could not go on: {one}")


def test_a_rank_that_comes_too_late_is_named(found: list[dict[str, str]], folder: Path) -> None:
    """The other one waits no longer than the time limit of the group, and has begun nothing."""
    said = "LifecycleError: rank {} has ended, or does not answer within the time limit"
    assert found[1]["late"].startswith(said.format(1))
    assert found[2]["late"].startswith(said.format(0))
    assert not (folder / "late").exists()


def test_one_process_goes_on_where_a_rank_was_killed(
    found: list[dict[str, str]], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are told of it, and the block that all had finished is not solved for again."""
    assert all(each["killed"].startswith("LifecycleError: another rank has ended, or") for each in found[:2])
    assert [path.name for path in (folder / "killed").iterdir()] == [".unfinished"]
    solved: list[int] = []

    def counted(*args: object, **kwargs: object) -> object:
        solved.append(1)
        return solve_by(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(_layer, "solve_by", counted)
    quantize("list", BATCHES, folder / "killed")
    assert len(solved) == 4  # inputs of the layers of one block
    assert files(folder / "killed") == files(folder / "expected list")
