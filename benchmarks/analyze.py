"""What chosen bits do to the perplexity of a language model, beside splits by hand of the same size.

Run with ``python benchmarks/analyze.py --model wiki``. Every config is converted by GPTQ with the same data,
in groups of 64. ``3 | 4`` has the first half of the blocks in 3 bits and the others in 4, ``4 | 3`` the other
way round, ``3, 4, …`` takes turns, and ``attention 3`` has its blocks' other layers in 4 bits. Under each
split is what `analyze` chooses from 3, 4 and 8 bits within the same bytes, and at the end what it chooses
within those of 4 bits everywhere. Bits count codes, scales and zero points as files hold them. With
``--error 0.01`` the budget is a perplexity that is one percent above that of the float model, measured on
every other window of the text; the remaining ones tell what it is elsewhere.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load, text_of
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from recorded import Recording, add_option, recording
from tico_api import Budget, GPTQConfig, analyze, calibrate, convert, perplexity, plan, prepare
from tico_quantizers.analysis import Analysis

BASE: Final = GPTQConfig(group_size=64, show_progress=False)
CANDIDATES: Final = ({"bits": 3}, {"bits": 4}, {"bits": 8})
BLOCK: Final = "*.layers.{}.*"


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """A float model, and windows (windows, tokens) to calibrate and to test with."""

    model: nn.Module
    calibration: Tensor
    test: Tensor


def task_of(arguments: argparse.Namespace) -> Task:
    """Return the model that is asked for, with its data."""
    if arguments.model == "wiki":
        folder, texts = WIKI_LLAMA, [text_of("calibration"), text_of("heldout")]
    else:
        articles = wiki_articles()
        folder = smollm2_directory()
        texts = ["\n\n".join(articles[part]) for part in (CALIBRATION_ARTICLES, TEST_ARTICLES)]
    source = load(folder, arguments.window)
    calibration, test = (
        source.windows(text, tokens)
        for text, tokens in zip(texts, (arguments.tokens, arguments.test_tokens), strict=True)
    )
    return Task(model=source.model, calibration=calibration, test=test)


def splits(blocks: int) -> dict[str, GPTQConfig]:
    """Return the configs by hand, by name."""
    half, four = blocks // 2, {"bits": 4}

    def in_four(numbers: range) -> GPTQConfig:
        return _three({BLOCK.format(number): four for number in numbers})

    return {
        "3 | 4": in_four(range(half, blocks)),
        "4 | 3": in_four(range(blocks - half)),
        "3, 4, …": in_four(range(1, blocks, 2)),
        "4, 3, …": in_four(range(0, blocks, 2)),
        "attention 3": _three({"*.mlp.*": four}),
        "MLP 3": _three({"*.self_attn.*": four}),
        "4": BASE,
    }


def _three(overrides: Mapping[str, object]) -> GPTQConfig:
    return attrs.evolve(BASE, bits=3, overrides=overrides)


def converted(task: Task, config: GPTQConfig) -> nn.Module:
    """Return a copy of the model that was calibrated and converted."""
    prepared = prepare(task.model, config, inplace=False)
    return convert(calibrate(prepared, [task.calibration], show_progress=False))


def bits_of(task: Task, config: GPTQConfig) -> float:
    """Return the bits a weight of the layers that are quantized, with scales and zero points."""
    lines = [line for line in plan(task.model, config).lines if line.bits is not None]
    weights = sum(line.bytes_before for line in lines) / 4
    return 8 * sum(line.bytes_after or 0 for line in lines) / weights


def analyzed(task: Task, budget: Budget, points: int) -> tuple[Analysis, float]:
    """Return an analysis, and the CPU seconds that it took."""
    start = time.process_time()
    found = analyze(
        task.model,
        [task.calibration],
        budget=budget,
        base=BASE,
        candidates=CANDIDATES,
        points=points,
        show_progress=False,
    )
    return found, time.process_time() - start


def report(arguments: argparse.Namespace, record: Recording) -> None:
    """Print the splits, what is chosen within the bytes of each, and the curve."""
    task = task_of(arguments)
    by_hand = splits(len([*task.model.get_submodule("model.layers").children()]))
    names = arguments.split or [*by_hand]
    record.table(
        f"perplexity on {task.test.numel():,} tokens; float: {perplexity(task.model, task.test):.2f}",
        "bits",
        "MB",
        "perplexity",
        "CPU s",
    )
    known: dict[int, Analysis] = {}
    seconds: dict[int, float] = {}
    shown = set()
    for name in names:
        _row(record, task, name, by_hand[name])
        size = plan(task.model, by_hand[name]).bytes
        if size not in known and (arguments.model == "wiki" or not known):
            # From 4 bits to 9, six sizes have one at every whole number.
            known[size], seconds[size] = analyzed(task, Budget(bytes=size), points=6)
        found = known.get(size, next(iter(known.values())))
        points = [each for each in (found.chosen, *found.curve) if each.bytes <= size]
        within = max(points, key=lambda each: each.bytes)
        if within.choices not in shown:
            shown.add(within.choices)
            _row(record, task, "  chosen within these", found.config_of(within), seconds.get(size))
    record.note("CPU s: of an analysis; a row without is a point of the curve of the one before.")
    _curve(record, found)


def report_error(arguments: argparse.Namespace, record: Recording) -> None:
    """Print what is chosen so that perplexity grows by a share at most."""
    task = task_of(arguments)
    parts = task.test[::2], task.test[1::2]
    start = time.process_time()
    found = analyze(
        task.model,
        [task.calibration],
        budget=Budget(error=arguments.error),
        base=BASE,
        candidates=CANDIDATES,
        heldout=[parts[0]],
        show_progress=False,
    )
    seconds = time.process_time() - start
    record.table("perplexity", "bits", "MB", "held out", "elsewhere", "CPU s", width=30)
    record.row("float", "", "", *(f"{perplexity(task.model, part):.3f}" for part in parts), "")
    for name, config in (("4", BASE), (f"chosen for {arguments.error:.1%} at most", found.config)):
        model = converted(task, config)
        size, bits = plan(task.model, config).bytes / 1e6, bits_of(task, config)
        values = [f"{perplexity(model, part):.3f}" for part in parts]
        record.row(name, f"{bits:.2f}", f"{size:.2f}", *values, f"{seconds:.0f}" if config != BASE else "")


def _row(record: Recording, task: Task, name: str, config: GPTQConfig, seconds: float | None = None) -> None:
    result = perplexity(converted(task, config), task.test)
    size, bits = plan(task.model, config).bytes / 1e6, bits_of(task, config)
    record.row(
        name, f"{bits:.2f}", f"{size:.2f}", f"{result:.2f}", "" if seconds is None else f"{seconds:.0f}"
    )


def _curve(record: Recording, found: Analysis) -> None:
    """Print what was estimated at each size, and what was measured on what was held out."""
    record.table("divergence, estimated and measured on held-out windows", "bits", "estimated", "measured")
    for point in found.curve:
        name = f"{point.bytes / 1e6:.1f} MB"
        record.row(name, f"{point.bits:.2f}", f"{point.loss:.5f}", f"{point.divergence:.5f}")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=("wiki", "smollm2"), default="wiki")
    parser.add_argument("--tokens", type=int, default=4096, help="calibration tokens")
    parser.add_argument("--test-tokens", type=int, default=8192)
    parser.add_argument("--window", type=int, default=512)
    parser.add_argument("--split", action="append", help="this split only; may be given several times")
    parser.add_argument("--error", type=float, help="choose for this growth of perplexity instead")
    add_option(parser)
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with recording(arguments.result) as record:
        (report if arguments.error is None else report_error)(arguments, record)


if __name__ == "__main__":
    main()
