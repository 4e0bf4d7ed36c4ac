"""What GPTQ on four stacked linear layers costs on one thread, next to Samsung's tico where that is found.

Run with ``python benchmarks/gptq_stack.py --peer-path DIR``, DIR being the folder that its wheel was
installed to. Each prepares the layers, is shown the calibration rows one sample after the other, and
converts. CPU seconds are medians over rounds in which all take turns in one process; memory is what the
resident set grows by, at its peak, in a process of its own; the error is that of the output on other rows.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from gptq_solver import solver_module
from process_memory import forget_peak, resident
from recorded import Recording, add_option, recording
from tico_api import convert, prepare
from tico_config import GPTQConfig, MinMaxSpec


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """Layers, samples (samples, tokens, width) to calibrate with, other rows, and what is asked for."""

    model: nn.Module
    calibration: Tensor
    heldout: Tensor
    group_size: int | None
    act_order: bool


Quantize = Callable[[Task], nn.Module]


def ours(task: Task) -> nn.Module:
    """Return the layers quantized by this project."""
    # The grids of the paper, as the peer has them.
    paper = GPTQConfig(static_groups=False, observer=MinMaxSpec(), show_progress=False)
    config = attrs.evolve(paper, group_size=task.group_size, act_order=task.act_order)
    model = prepare(task.model, config)
    for sample in task.calibration:
        model(sample)
    return convert(model)


def tico(task: Task) -> nn.Module:
    """Return the layers quantized by Samsung's tico."""
    module = solver_module("tico.quantization.algorithm.gptq.quantizer")
    config = module.GPTQConfig(
        weight_bits=4, groupsize=task.group_size or -1, actorder=task.act_order, show_progress=False
    )
    quantizer = module.GPTQQuantizer(config)
    model: nn.Module = quantizer.prepare(task.model)
    for sample in task.calibration:
        model(sample)
    converted: nn.Module = quantizer.convert(model)
    return converted


CANDIDATES: Final[Mapping[str, Quantize]] = {"ours": ours, "tico": tico}


def task_of(arguments: argparse.Namespace, group_size: int | None) -> Task:
    """Return random layers and inputs that depend on each other, always the same ones."""
    width, random = arguments.width, torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(*(nn.Linear(width, width) for _ in range(4))).eval()
    mixing = torch.randn(width, width, generator=random) / width**0.5 + torch.eye(width)
    rows = torch.randn(arguments.samples + 8, arguments.tokens, width, generator=random) @ mixing
    return Task(
        model=model,
        calibration=rows[8:],
        heldout=rows[:8],
        group_size=group_size,
        act_order=not arguments.no_act_order,
    )


@torch.no_grad()
def measured(quantize: Quantize, task: Task) -> tuple[float, float]:
    """Return the CPU seconds, and the relative error of the output."""
    wanted = task.model(task.heldout)
    task = attrs.evolve(task, model=copy.deepcopy(task.model))
    start = time.process_time()
    model = quantize(task)
    seconds = time.process_time() - start
    return seconds, float((model(task.heldout) - wanted).norm() / wanted.norm())


def memory(name: str, arguments: argparse.Namespace, group_size: int | None) -> float:
    """Return by how many megabytes a process grows that quantizes once, from its model and data on."""
    command = [sys.executable, __file__, "--only", name, *sys.argv[1:]]
    if group_size is not None:
        command += ["--only-group", str(group_size)]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1])) / 1e6


def print_memory(arguments: argparse.Namespace) -> None:
    """Quantize once, and print the bytes that this process has grown by."""
    task = task_of(arguments, arguments.only_group)
    # One product and one import of everything, so that what is measured is the algorithm.
    small = argparse.Namespace(**vars(arguments) | {"width": 16, "samples": 4, "tokens": 8})
    measured(CANDIDATES[arguments.only], task_of(small, None))
    before = resident("VmRSS")
    forget_peak()
    with torch.no_grad():
        CANDIDATES[arguments.only](task)
    print(json.dumps(resident("VmHWM") - before))


def importable(arguments: argparse.Namespace) -> dict[str, Quantize]:
    """Return the candidates that can be imported here, and say why the others cannot."""
    small = argparse.Namespace(**vars(arguments) | {"width": 16, "samples": 4, "tokens": 8})
    found: dict[str, Quantize] = {}
    for name, quantize in CANDIDATES.items():
        try:
            measured(quantize, task_of(small, None))
        except (ImportError, AttributeError) as error:
            print(f"{name} left out: {str(error).splitlines()[0]}")
        else:
            found[name] = quantize
    return found


def report(arguments: argparse.Namespace, record: Recording) -> None:
    """Print a line for each candidate and group size."""
    candidates = importable(arguments)
    record.table("", "group", "CPU s", "/ ours", "peak MB", "error", width=14)
    for group_size in (None, 128):
        task = task_of(arguments, group_size)
        seconds: dict[str, list[float]] = {name: [] for name in candidates}
        errors: dict[str, float] = {}
        for _ in range(arguments.rounds):
            for name, quantize in candidates.items():
                spent, errors[name] = measured(quantize, task)
                seconds[name].append(spent)
        base = statistics.median(seconds["ours"])
        for name in candidates:
            spent = statistics.median(seconds[name])
            grown = memory(name, arguments, group_size)
            figures = (f"{spent:.3f}", f"{spent / base:.2f}", f"{grown:.1f}", f"{errors[name]:.5f}")
            record.row(name, str(group_size or "-"), *figures)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, or print the memory of one candidate."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--samples", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=32, help="of a sample")
    parser.add_argument("--no-act-order", action="store_true")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for tico in")
    parser.add_argument("--only", choices=CANDIDATES, help="print the bytes that this one grows by")
    parser.add_argument("--only-group", type=int)
    add_option(parser)
    arguments = parser.parse_args(argv)
    # Before this project's own `tico.quantization`, which is not used here.
    sys.path[:0] = arguments.peer_path
    torch.set_num_threads(1)
    if arguments.only:
        print_memory(arguments)
    else:
        with recording(arguments.result) as record:
            report(arguments, record)


if __name__ == "__main__":
    main()
