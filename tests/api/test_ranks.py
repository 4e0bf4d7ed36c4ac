"""Several processes that convert a model together end with the bits of one."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup

import rank_work
from rank_work import CASES, IN_PAIRS, PROCESSES, QUIET, digest, kept_in, prepared
from tico.quantization import convert
from tico_config import CalibrationError, ConfigError
from tico_quantizers.lifecycle._stages import state_of

Found = list[dict[str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return where the processes leave what they have found, and blocks that they have finished."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def found(folder: Path) -> Found:
    """Return what each of three processes has found; the last two are a group of their own, too."""
    command = [sys.executable, rank_work.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{process}.json").read_text()) for process in range(PROCESSES)]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Run the model's own forward as the ranks do."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def group_of_one(tmp_path: Path) -> Iterator[ProcessGroup | None]:
    """Return the group of a process that is alone."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/rendezvous", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


@pytest.mark.parametrize("name", CASES)
def test_every_rank_ends_with_the_bits_and_report_of_one_process(found: Found, name: str) -> None:
    """Whatever each rank has run of the batches, and also if one has run none."""
    expected = digest(convert(prepared(CASES[name], CASES[name].batches())))
    assert [rank[f"{name} on 3"] for rank in found] == [expected] * 3
    if name in IN_PAIRS:
        assert [rank[f"{name} on 2"] for rank in found[1:]] == [expected] * 2


def test_a_group_of_one_is_no_group(group_of_one: ProcessGroup | None) -> None:
    """What it gives is what the same call gives without it."""
    case = CASES["gptq of panels"]
    alone = digest(convert(prepared(case, case.batches())))
    assert digest(convert(prepared(case, case.batches()), group=group_of_one)) == alone


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("other weights", "LifecycleError: rank 0 and rank 1 were given models with different weights"),
        ("other config", "LifecycleError: rank 0 and rank 1 prepared their models with different configs"),
        ("same batches", "CalibrationError: rank 0 and rank 1 have 1 batch in common"),
        ("ordered statistics", "UnsupportedError: "),
        (
            "own algorithm",
            "UnsupportedError: a ToyCalibration does not share with other ranks what it learns",
        ),
        ("dispatched", "UnsupportedError: it is a model that `device_map` has dispatched"),
    ],
)
def test_ranks_that_cannot_work_together_are_told_so_and_keep_their_models(
    found: Found, name: str, told: str
) -> None:
    """All of them, in the same sentence."""
    one, other = (rank[name] for rank in found[1:])
    assert one == other
    assert one.startswith(f"unchanged {told}")


def test_what_layers_outside_of_blocks_read_before_there_was_a_group_is_refused() -> None:
    """It was not kept, as no other rank was known of."""
    model = prepared(CASES["gptq of panels"], CASES["gptq of panels"].batches()[:1])
    with pytest.raises(CalibrationError, match=r"before torch\.distributed was init") as caught:
        state_of(model).calibration.tell()
    assert caught.value.module == "2"


def test_an_error_on_one_rank_ends_the_work_of_all(found: Found) -> None:
    """Each keeps its model, and is told which rank it was."""
    one, other = (rank["one fails"] for rank in found[1:])
    assert one.startswith("unchanged LifecycleError: rank 1 could not go on: ValueError: no more")
    assert other == "unchanged ValueError: no more"


def test_one_process_goes_on_where_two_were_interrupted(found: Found, folder: Path) -> None:
    """It takes the block that they had finished, and ends with the bits of one that did all by itself."""
    assert found[2]["interrupted"] == "unchanged ValueError: no more"
    (first,) = (folder / "kept").glob("*/*.safetensors")
    written = first.stat().st_mtime_ns
    again = kept_in(folder)
    alone = attrs.evolve(again, config=QUIET)
    resumed = digest(convert(prepared(again, again.batches())))
    assert resumed == digest(convert(prepared(alone, alone.batches())))
    assert first.stat().st_mtime_ns == written
    assert len(list((folder / "kept").iterdir())) == 1


def test_a_rank_that_comes_too_late_is_named(found: Found) -> None:
    """The others wait no longer than the time limit of the group."""
    one, other = (rank["late"] for rank in found[1:])
    assert one.startswith("unchanged LifecycleError: rank 1 has ended, or does not answer within the time")
    assert other.startswith("unchanged LifecycleError: rank 0 has ended, or does not answer")


def test_a_rank_that_ends_is_an_error_on_the_others(found: Found) -> None:
    """Their models are prepared still."""
    assert found[1]["ended"].startswith("unchanged LifecycleError: another rank has ended, or")


def test_a_group_is_one_of_torch() -> None:
    """Anything else is refused before the model is looked at."""
    with pytest.raises(ConfigError, match="a ProcessGroup of torch") as caught:
        convert(torch.nn.Linear(2, 2), group=[0, 1])  # type: ignore[arg-type]  # it is none
    assert caught.value.field == "group"
