"""Runs of `quantize_checkpoint` that are killed, each some steps later than the one before, until one ends.

python interrupted_runs.py SOURCE OUT CONFIGS...: JSON of a list of configs each, which are run one after the
other, into folders in OUT that are named 0, 1, ...; prints for each how many runs were killed.

A step is a file that is written to the disk, renamed or removed, or a layer that is solved for. Each run is a
process of its own, forked from one that has imported all that it needs, and that no garbage collection of a
run goes through.
"""

from __future__ import annotations

import gc
import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import ParamSpec, TypeVar

import torch

import tico.quantization
from tico.quantization import quantize_checkpoint
from tico_config import BaseConfig, from_json
from tico_quantizers.algorithms.gptq import _layer
from tiny_models import TOKENS

P = ParamSpec("P")
R = TypeVar("R")
BATCHES = [TOKENS, (TOKENS + 1) % 40]
STRIDE = 4


class Steps:
    """Counts steps, and kills the process before the last of them."""

    def __init__(self, last: int) -> None:
        self._left = last

    def counted(self, function: Callable[P, R]) -> Callable[P, R]:
        """Return `function` as a step."""

        def step(*args: P.args, **kwargs: P.kwargs) -> R:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return step


def run(source: Path, out: Path, configs: list[BaseConfig], last: int) -> None:
    """Run in this process, which is killed at the step `last`."""
    steps = Steps(last)
    for owner, name in (
        (os, "fsync"),
        (os, "rename"),
        (Path, "replace"),
        (Path, "unlink"),
        (Path, "rmdir"),
        (shutil, "rmtree"),
        (_layer, "solve_by"),
    ):
        setattr(owner, name, steps.counted(getattr(owner, name)))
    quantize_checkpoint(source, out, configs, BATCHES, shard_bytes=2000)


def was_killed(source: Path, out: Path, configs: list[BaseConfig], last: int) -> bool:
    """Run in a process that is killed at the step `last`, and return whether it came so far."""
    process = os.fork()
    if not process:
        try:
            run(source, out, configs, last)
            os._exit(0)
        finally:
            traceback.print_exc()
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    if code not in (0, -signal.SIGKILL):
        sys.exit(code)
    return code != 0


def interrupt(source: Path, out: Path, configs: list[BaseConfig]) -> int:
    """Run again and again until nothing kills a run, and return how many were killed."""
    killed = 0
    while was_killed(source, out, configs, 1 + STRIDE * killed):
        killed += 1
        if (out / "quantized.json").exists():
            tico.quantization.load_quantized(out)  # whole, or an error
    return killed


def main() -> None:
    """Interrupt the runs of each list of configs."""
    source, out = Path(sys.argv[1]), Path(sys.argv[2])
    lists = [[from_json(each) for each in json.loads(text)] for text in sys.argv[3:]]
    quantize_checkpoint(source, out / "warm", lists[0], BATCHES)
    gc.collect()
    gc.freeze()
    for number, configs in enumerate(lists):
        sys.stdout.write(f"{interrupt(source, out / str(number), configs)}\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
