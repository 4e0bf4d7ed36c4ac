"""What wrapping, calibrating, converting and running a small LLaMA costs, next to Samsung's tico.

Run with ``nox -s bench -- wrapq --peer-path DIR``; DIR holds tico, as `tico_peer` says.
A random LLaMA (hidden size 256, 4 layers, 8 heads of queries and 4 of keys), 16 texts of 64 tokens, uint8.
Both take turns in one process on one thread; figures are medians of CPU seconds, and the ratios are taken
within each round. The float model has eager attention, the form whose steps the points are at. Quantized
layers run as the reference has it: every forward pass expands the packed weights again. ``stepwise`` is the
variant with a point for every step of norms, SiLU and softmax.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, TypeVar

import attrs
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from recorded import Recording, add_option, recording
from tico_api import PTQConfig, convert, prepare
from tico_peer import tico_from
from tico_quantizers import QuantizedModule
from tico_wrapq import QuantModuleBase

T = TypeVar("T")
Logits = Callable[[nn.Module, Tensor], Tensor]
OURS: Final = {"ours": PTQConfig(), "stepwise": PTQConfig(variant="stepwise")}


@attrs.frozen(eq=False, kw_only=True)
class Library:
    """One of the libraries compared."""

    prepare: Callable[[nn.Module], nn.Module]
    convert: Callable[[nn.Module], nn.Module]
    logits: Logits
    points: Callable[[nn.Module], int]


@attrs.frozen(kw_only=True)
class Costs:
    """CPU seconds of each step, the relative error of the logits, and how many points there are."""

    prepare: float
    calibrate: float
    convert: float
    forward: float
    error: float
    points: int


def model_of(vocabulary: int = 512) -> nn.Module:
    """Return the random model, in evaluation mode."""
    config = LlamaConfig(  # type: ignore[call-arg]  # its base takes the attention
        vocab_size=vocabulary,
        hidden_size=256,
        intermediate_size=688,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=256,
        attn_implementation="eager",
    )
    return nn.Module.eval(LlamaForCausalLM(config))


def logits_of(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the logits of a model of transformers."""
    found: Tensor = model(tokens).logits
    return found


def points_of(model: nn.Module) -> int:
    """Return how many weights and activations of a converted model are on a grid."""
    layers = [module for module in model.modules() if isinstance(module, QuantizedModule)]
    wrappers = [module for module in model.modules() if isinstance(module, QuantModuleBase)]
    grids = [grid for layer in layers for grid in (layer.packed, layer.act_in, layer.act_out)]
    fixed = [point.fixed for wrapper in wrappers for _, point in wrapper.named_points()]
    return sum(grid is not None for grid in (*grids, *fixed))


def ours(config: PTQConfig) -> Library:
    """Return this project with `config`."""
    return Library(
        prepare=lambda each: prepare(each, config), convert=convert, logits=logits_of, points=points_of
    )


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of `action` and its result."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def run_all(model: nn.Module, texts: list[Tensor], logits: Logits) -> Tensor:
    """Return the logits of every text."""
    return torch.cat([logits(model, text) for text in texts])


def measure(library: Library, model: nn.Module, texts: list[Tensor], expected: Tensor) -> Costs:
    """Return what one round costs."""
    copied = copy.deepcopy(model)
    preparing, prepared = timed(lambda: library.prepare(copied))
    watching, _ = timed(lambda: run_all(prepared, texts, library.logits))
    converting, converted = timed(lambda: library.convert(prepared))
    forward, found = timed(lambda: run_all(converted, texts[:4], library.logits))
    return Costs(
        prepare=preparing,
        calibrate=watching,
        convert=converting,
        forward=forward,
        error=float((found - expected[:4]).norm() / expected[:4].norm()),
        points=library.points(converted),
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-path", type=Path)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, texts = model_of(), list(torch.randint(512, (16, 1, 64)))
    libraries = {name: ours(config) for name, config in OURS.items()}
    peer = tico_from(arguments.peer_path)
    if peer is not None:
        libraries["tico"] = Library(
            prepare=lambda each: peer.prepare(each, 8),
            convert=peer.convert,
            logits=peer.logits,
            points=peer.observers,
        )
    print(f"torch {torch.__version__}, one thread, {arguments.rounds} rounds")
    with recording(arguments.result) as record, torch.no_grad():
        report(*rounds(libraries, model, texts, arguments.rounds), record)


def rounds(
    libraries: dict[str, Library], model: nn.Module, texts: list[Tensor], count: int
) -> tuple[dict[str, list[Costs]], list[float]]:
    """Return the costs of each library in each round, and those of the float forward passes of all texts."""
    costs: dict[str, list[Costs]] = {name: [] for name in libraries}
    floats: list[float] = []
    for _ in range(count + 1):
        seconds, expected = timed(lambda: run_all(model, texts, logits_of))
        floats.append(seconds)
        for name, library in libraries.items():
            costs[name].append(measure(library, model, texts, expected))
    return {name: each[1:] for name, each in costs.items()}, floats[1:]


def report(costs: dict[str, list[Costs]], floats: list[float], record: Recording) -> None:
    """Print seconds and ratios."""
    peer = costs.get("tico", [])
    title = f"float: {len(floats)} rounds of 16 texts, {statistics.median(floats):.3f} s"
    record.table(title, *costs, *(f"tico / {name}" for name in OURS if peer))
    for field in ("prepare", "calibrate", "convert", "forward"):
        medians = [statistics.median(getattr(each, field) for each in costs[name]) for name in costs]
        pairs = [zip(peer, costs[name], strict=True) for name in OURS if peer]
        ratios = [statistics.median(getattr(a, field) / getattr(b, field) for a, b in each) for each in pairs]
        cells = [*(f"{value:.3f}" for value in medians), *(f"{ratio:.2f}" for ratio in ratios)]
        record.row(f"{field}, seconds", *cells)
    for field, share in (("calibrate", 1.0), ("forward", 0.25)):
        ratio = [
            statistics.median(
                getattr(each, field) / (share * own) for each, own in zip(costs[name], floats, strict=True)
            )
            for name in costs
        ]
        record.row(f"{field} / float", *(f"{value:.2f}" for value in ratio))
    for name, each in costs.items():
        record.note(f"{name}: {each[-1].points} points, relative error of the logits {each[-1].error:.4f}")


if __name__ == "__main__":
    main()
