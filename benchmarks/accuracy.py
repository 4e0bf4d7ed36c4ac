"""How near each method comes to the float model, and what it takes.

python benchmarks/accuracy.py --grid 3,64                      SmolLM2, every method that is installed
python benchmarks/accuracy.py --model wiki --grid 2,64         the embedded model
python benchmarks/accuracy.py --only gptq --only auto-round --peer-path PEERS

Each method runs in a process of its own, on one thread, and gets the same calibration windows. All are
measured by one function on text that nothing was chosen by: the perplexity; the divergence KL(float ‖
quantized) of the next token's distribution, in thousandths of a nat; and the share of tokens for which both
models have the same first choice. Memory is the peak above that with the float model loaded. AutoRound and
llm-compressor are looked for in ``--peer-path``.
"""

from __future__ import annotations

import argparse
import copy
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

import gptq_model
from auto_round_peer import quantized_by_auto_round
from gptq_model import MEGABYTE, Quantize, Task, calibrated, converted, gptq_config, ours, rotated
from language_models import load, logits_of
from process_memory import resident
from recorded import Recording, add_option, recording
from tico_api import AWQConfig, BlockTuneConfig, ScaleTuneConfig
from tico_config import BaseConfig

Configure = Callable[[Task], BaseConfig]


def by(*configure: Configure) -> Quantize:
    """Return what some configs make of a model, one after the other."""

    def quantize(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
        for each in configure:
            model = converted(model, calibration, each(task), calibrated)
        return model

    return quantize


def blocks(task: Task, *, steps: int = 32) -> BlockTuneConfig:
    """Return the config of learned rounding."""
    return BlockTuneConfig(
        bits=task.bits,
        group_size=task.group_size,
        ragged_groups=True,
        steps=steps,
        show_progress=False,
    )


def scales(base: Configure) -> Configure:
    """Return the config that tunes the scales of `base`."""
    return lambda task: ScaleTuneConfig(base=base(task), norms=True, show_progress=False)


def awq(task: Task) -> AWQConfig:
    """Return the config of AWQ, which leaves the rounding to what comes next."""
    return AWQConfig(
        bits=task.bits, group_size=task.group_size or 64, round_weights=False, show_progress=False
    )


def gptq(task: Task) -> BaseConfig:
    """Return the config of GPTQ, as it is by default."""
    return gptq_config(task, {})


def auto_round(steps: int) -> Quantize:
    """Return AutoRound with so many steps a block."""

    def quantize(model: nn.Module, calibration: Tensor, task: Task) -> nn.Module:
        return quantized_by_auto_round(
            model, calibration, task.folder, bits=task.bits, group_size=task.group_size, steps=steps
        )

    return quantize


METHODS: Final[Mapping[str, Quantize]] = {
    "rounded": gptq_model.rounded,
    "hqq": gptq_model.without_data,
    "gptq": ours(),
    "gptq, without gains": ours(row_gain=False),
    "gptq, asymmetric": ours(asymmetric=0.25),
    "awq, gptq": by(awq, gptq),
    "rotation, gptq": rotated(ours()),
    "blocks": by(blocks),
    "rotation, blocks": rotated(by(blocks)),
    "scales of gptq": by(scales(gptq)),
    "scales of blocks": by(scales(blocks)),
    "rotation, scales of blocks": rotated(by(scales(blocks))),
    "llm-compressor, gptq": gptq_model.llm_compressor,
    "auto-round, 50 steps": auto_round(50),
    "auto-round, 200 steps": auto_round(200),
}


@attrs.frozen
class Nearness:
    """How near a model comes to another one, summed over tokens."""

    tokens: int = 0
    loss: float = 0.0
    divergence: float = 0.0
    agreed: int = 0

    def plus(self, expected: Tensor, found: Tensor, labels: Tensor) -> Nearness:
        """Return the sums with those of logits (tokens, vocabulary), for the tokens that follow."""
        p, q = (each.to(torch.float64).log_softmax(-1) for each in (expected, found))
        return Nearness(
            tokens=self.tokens + len(labels),
            loss=self.loss - float(q.gather(1, labels[:, None]).sum()),
            divergence=self.divergence + float((p.exp() * (p - q)).sum()),
            agreed=self.agreed + int((p.argmax(-1) == q.argmax(-1)).sum()),
        )

    def cells(self) -> list[str]:
        """Return perplexity, divergence and share of equal first choices."""
        return [
            f"{math.exp(self.loss / self.tokens):.2f}",
            f"{self.divergence / self.tokens * 1000:.1f}",
            f"{self.agreed / self.tokens:.3f}",
        ]


def nearness(expected: nn.Module, found: nn.Module, windows: Tensor) -> Nearness:
    """Return how near the quantized model `found` comes to the float one on windows (rows, tokens)."""
    sums = Nearness()
    for window in windows[:, None]:
        wanted, given = (logits_of(each, window)[0, :-1] for each in (expected, found))
        sums = sums.plus(wanted, given, window[0, 1:])
    return sums


def child(name: str, task: Task, heldout_tokens: int) -> list[str]:
    """Return the cells of one method."""
    torch.set_num_threads(1)
    source = load(task.folder, task.window)
    texts = zip(task.texts(), (task.tokens, heldout_tokens), strict=True)
    calibration, heldout = (source.windows(text, tokens) for text, tokens in texts)
    model = copy.deepcopy(source.model)
    before, start = resident("VmRSS"), time.process_time()
    quantized = model if name == "float" else METHODS[name](model, calibration, task)
    took = time.process_time() - start, (resident("VmHWM") - before) / MEGABYTE
    # A peer may leave the model in training mode, or in another dtype.
    found = nearness(source.model, quantized.eval().to(torch.float32), heldout)
    return [*found.cells(), f"{took[0]:.0f}", f"{max(took[1], 0):.0f}"]


def in_child(name: str, argv: Sequence[str]) -> list[str] | None:
    """Return the cells of a method that runs in a process of its own, or None where it cannot be run."""
    command = [sys.executable, __file__, *argv, "--child", name]
    finished = subprocess.run(command, capture_output=True, text=True, check=False)
    if finished.returncode:
        print(f"{name} left out: {(finished.stderr.strip().splitlines() or ['no reason'])[-1]}")
        return None
    cells: list[str] = json.loads(finished.stdout.splitlines()[-1])
    return cells


def print_table(names: Sequence[str], task: Task, argv: Sequence[str], record: Recording) -> None:
    """Print one line for each method."""
    torch.set_num_threads(1)  # as every child does
    unit = "per channel" if task.group_size is None else f"g{task.group_size}"
    title = f"{task.folder.name.split('.')[0]}, W{task.bits} {unit}, {task.tokens:,} tokens"
    record.table(title, "perplexity", "KL, 1/1000", "same first", "CPU s", "MB", width=28)
    for name in names:
        cells = in_child(name, argv)
        if cells is not None:
            record.row(name, *cells)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the table that the command line asks for."""
    given = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", choices=("smollm2", "wiki"), default="smollm2")
    parser.add_argument("--grid", default="3,64", help="BITS, or BITS,GROUP")
    parser.add_argument("--tokens", type=int, default=8192, help="calibration tokens")
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--heldout-tokens", type=int, default=8192)
    parser.add_argument("--only", choices=list(METHODS), action="append", help="more than once for more")
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for peers in")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args(given)
    sys.path += options.peer_path
    bits, group_size = gptq_model.grid_of(options.grid)
    task = Task(
        folder=gptq_model.folder_of(options.model),
        bits=bits,
        group_size=group_size,
        window=options.window,
        tokens=options.tokens,
        act_order=True,
        damping=0.01,
    )
    if options.child:
        print(json.dumps(child(options.child, task, options.heldout_tokens)))
        return
    with recording(options.result) as record:
        print_table(["float", *(options.only or METHODS)], task, given, record)


if __name__ == "__main__":
    main()
