"""Processes that quantize a checkpoint together, and one whose work they go on with.

python checkpoint_ranks.py FOLDER: leaves in FOLDER the models that one process makes (`expected NAME`), those
that its ranks make (`NAME on RANKS`), and what each rank was told, in a JSON file.
"""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import ProcessGroup

from tico.quantization import AWQConfig, GPTQConfig, PTQConfig, SmoothQuantConfig, quantize_checkpoint
from tico.quantization.config import BaseConfig
from tico_observers import write_sealed
from tico_quantizers.algorithms.gptq import _layer
from tico_quantizers.calibration import _checkpoint
from tico_quantizers.solvers import solve_by
from tiny_models import TOKENS, tiny_llama

GPTQ: Final = GPTQConfig(show_progress=False)
CONFIGS: Final[Mapping[str, Sequence[BaseConfig]]] = {
    "list": (SmoothQuantConfig(), GPTQ, PTQConfig()),
    "search": (AWQConfig(group_size=None, show_progress=False),),
}
BATCHES: Final = [(TOKENS + number) % 40 for number in range(4)]
RANKS: Final = 3


def quantize(name: str, batches: Sequence[Tensor], out: Path, group: ProcessGroup | None = None) -> None:
    """Quantize the model that is beside `out` by the configs of that name."""
    quantize_checkpoint(out.with_name("source"), out, CONFIGS[name], batches, group=group)


def told(work: Callable[[], object]) -> str:
    """Return what is raised."""
    try:
        work()
    except Exception as error:  # noqa: BLE001  # it is what the test asks about
        return f"{type(error).__name__}: {error}"
    return "nothing"


def interrupt_search(out: Path) -> None:
    """Begin a search that ends once it has kept what it has found in the first block."""
    kept: list[int] = []

    def once(path: Path, about: str, tensors: Mapping[str, Tensor]) -> None:
        if kept:
            raise KeyboardInterrupt
        kept.append(1)
        write_sealed(path, about, tensors)

    with mock.patch.object(_checkpoint, "write_sealed", once):
        try:
            quantize("search", BATCHES, out)
        except KeyboardInterrupt:
            return
    sys.exit("it was not interrupted")


def refusals(rank: int, pair: ProcessGroup | None, folder: Path) -> dict[str, str]:
    """Return what a pair of ranks is told that do not begin with the same."""
    own, sources = BATCHES[rank : rank + 1], (folder / "source", folder / "another source")
    configs = (GPTQ, GPTQConfig(show_progress=False, bits=8))

    def work(
        name: str, config: BaseConfig = GPTQ, data: Sequence[Tensor] = own, source: Path = sources[0]
    ) -> str:
        return told(lambda: quantize_checkpoint(source, folder / name, config, data, group=pair))

    return {
        "source": work("refused", source=sources[rank]),
        "config": work("refused", configs[rank]),
        "batches": work("refused", data=BATCHES[:2][rank:] + BATCHES[1:2]),
        "out_dir": work(f"refused {rank}"),
        "taken": work("source"),
    }


def late(rank: int, pair: ProcessGroup | None, hasty: ProcessGroup | None, folder: Path) -> str:
    """Return what a rank is told of another one that comes later than the time limit of a `hasty` group."""
    dist.barrier(pair)
    time.sleep(3 * rank)
    return told(lambda: quantize("list", BATCHES[rank : rank + 1], folder / "late", hasty))


def killed(rank: int, batches: Sequence[Tensor], folder: Path) -> str:
    """Return what a rank is told of the last one, which is killed in the second block of GPTQ."""
    out = folder / "killed"

    def until_second(*args: object, **kwargs: object) -> object:
        if rank == RANKS - 1 and any(out.glob(".unfinished/*/block-00000.safetensors")):
            os.kill(os.getpid(), signal.SIGKILL)
        return solve_by(*args, **kwargs)  # type: ignore[arg-type]

    with mock.patch.object(_layer, "solve_by", until_second):
        return told(lambda: quantize("list", batches, out, dist.group.WORLD))


def run_process(process: int, folder: Path) -> None:
    """Do all that the tests ask about; the last two processes are a group of their own, too."""
    rendezvous, limit = f"file://{folder}/rendezvous", timedelta(seconds=120)
    dist.init_process_group("gloo", init_method=rendezvous, rank=process, world_size=RANKS, timeout=limit)
    pair, hasty = dist.new_group([1, 2]), dist.new_group([1, 2], timeout=timedelta(seconds=1))
    own = [BATCHES[:1], [], BATCHES[1:]][process]
    found = {}
    quantize("list", own, folder / "list on 3", dist.group.WORLD)
    if process:
        quantize("search", [BATCHES[:3], BATCHES[3:]][process - 1], folder / "search on 2", pair)
        found = refusals(process - 1, pair, folder)
        found["late"] = late(process - 1, pair, hasty, folder)
    (folder / f"{process}.json").write_text(json.dumps(found))
    found["killed"] = killed(process, own, folder)
    (folder / f"{process}.json").write_text(json.dumps(found))


def begin(process: int, folder: Path) -> int:
    """Return the number of a new process that does what the rank `process` does."""
    child = os.fork()
    if not child:
        try:
            run_process(process, folder)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    return child


def main(folder: Path) -> None:
    """Let one process work, and then its children."""
    tiny_llama().save_pretrained(folder / "source", max_shard_size="4KB")
    tiny_llama(tied=True).save_pretrained(folder / "another source")
    for name in CONFIGS:
        quantize(name, BATCHES, folder / f"expected {name}")
    interrupt_search(folder / "search on 2")
    gc.freeze()  # what is imported, once for all of them
    children = [begin(process, folder) for process in range(RANKS)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if codes != [0, 0, -signal.SIGKILL]:
        sys.exit(f"ended with {codes}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
