"""What wrapping, calibrating, converting and running a LLaMA costs, next to Samsung's tico.

Run with ``nox -s bench -- wrapq --peer-path DIR``; DIR holds tico, as `tico_peer` says.
A random LLaMA (hidden size 256, 4 layers, 8 heads of queries and 4 of keys), 16 texts of 64 tokens, uint8;
with ``--smollm2`` SmolLM2-135M and windows of 512 tokens, 16 bits and 8 bits per token at every point, with
the perplexity. All take turns in one process on one thread; figures are medians of CPU seconds, and the
ratios are taken within each round. The float model has eager attention, the form whose steps the points
are at. Quantized layers run as the reference has it: every forward pass expands the packed weights again.
``stepwise`` is the variant with a point for every step of norms, SiLU and softmax. ``mechanism`` is a model
of the same code for whose classes no wrapper is registered.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Final, TypeVar

import attrs
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import load, text_of
from real_models import smollm2_directory
from recorded import Recording, add_option, recording
from tico_api import PTQConfig, convert, perplexity, prepare
from tico_config import DType, PerToken, affine
from tico_peer import Tico, tico_from
from tico_quantizers import QuantizedModule
from tico_wrapq import QuantModuleBase, lookup

T = TypeVar("T")
Logits = Callable[[nn.Module, Tensor], Tensor]
WINDOW: Final = 512
ACTIVATIONS: Final = {
    "W8A16": affine(DType.uint(16)),
    "W8A8 per token": affine(DType.uint(8), granularity=PerToken()),
}


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


def ours(config: PTQConfig, *, mechanism: bool = False) -> Library:
    """Return this project with `config`; with its wrappers for families of models, or without."""
    given: Callable[[nn.Module], nn.Module] = without_wrappers if mechanism else lambda model: model
    return Library(
        prepare=lambda each: prepare(given(each), config),
        convert=convert,
        logits=logits_of,
        points=points_of,
    )


def theirs(peer: Tico, bits: int) -> Library:
    """Return Samsung's tico with activations of `bits` bits."""
    return Library(
        prepare=lambda each: peer.prepare(each, bits),
        convert=peer.convert,
        logits=peer.logits,
        points=peer.observers,
    )


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return `model` with classes of the same code in the place of its own, for which no wrapper is known."""
    made: dict[type[nn.Module], type[nn.Module]] = {}
    for module in model.modules():
        kind = type(module)
        if kind.__module__.startswith("transformers.models.") and lookup(kind) is not None:
            if kind not in made:
                own = {name: each for name, each in vars(kind).items() if name not in _OF_CLASSES}
                made[kind] = type(f"Unknown{kind.__name__}", kind.__bases__, own)
            module.__class__ = made[kind]
    return model


_OF_CLASSES: Final = ("__dict__", "__weakref__")


def timed(action: Callable[[], T]) -> tuple[float, T]:
    """Return the CPU seconds of `action` and its result."""
    start = time.process_time()
    result = action()
    return time.process_time() - start, result


def run_all(model: nn.Module, texts: list[Tensor], logits: Logits) -> Tensor:
    """Return the logits of every text."""
    return torch.cat([logits(model, text) for text in texts])


def measure(library: Library, model: nn.Module, texts: list[Tensor], expected: Tensor) -> Costs:
    """Return what one round costs; the forward passes are those of a quarter of the texts."""
    copied, few = copy.deepcopy(model), texts[: -(-len(texts) // 4)]
    preparing, prepared = timed(lambda: library.prepare(copied))
    watching, _ = timed(lambda: run_all(prepared, texts, library.logits))
    converting, converted = timed(lambda: library.convert(prepared))
    forward, found = timed(lambda: run_all(converted, few, library.logits))
    return Costs(
        prepare=preparing,
        calibrate=watching,
        convert=converting,
        forward=forward * len(texts) / len(few),
        error=float((found - expected[: len(few)]).norm() / expected[: len(few)].norm()),
        points=library.points(converted),
    )


def main() -> None:
    """Print the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-path", type=Path)
    parser.add_argument("--smollm2", action="store_true", help="measure SmolLM2-135M")
    parser.add_argument("--rows", nargs="*", default=[""], help="parts of the names of activations")
    parser.add_argument("--calibration", type=int, default=1024, help="tokens for the perplexity")
    parser.add_argument("--heldout", type=int, default=4096, help="tokens")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    peer = tico_from(arguments.peer_path)
    print(f"torch {torch.__version__}, one thread, {arguments.rounds} rounds")
    with recording(arguments.result) as record, torch.no_grad():
        if arguments.smollm2:
            compare_smollm2(peer, arguments, record)
        else:
            compare_random(peer, arguments.rounds, record)


def compare_random(peer: Tico | None, count: int, record: Recording) -> None:
    """Print what the random LLaMA costs."""
    model, texts = model_of(), list(torch.randint(512, (16, 1, 64)))
    libraries = {
        "ours": ours(PTQConfig()),
        "mechanism": ours(PTQConfig(steps="auto"), mechanism=True),
        "stepwise": ours(PTQConfig(variant="stepwise")),
    }
    if peer is not None:
        libraries["tico"] = theirs(peer, 8)
    costs, floats = rounds(libraries, model, texts, count)
    record.table(title_of("uint8", floats, "16 texts"), *costs)
    report(costs, floats, record)


def compare_smollm2(peer: Tico | None, arguments: argparse.Namespace, record: Recording) -> None:
    """Print what SmolLM2-135M costs and its perplexities."""
    source = load(smollm2_directory(), WINDOW)
    model = source.model
    config = getattr(model, "config")  # noqa: B009  # torch's type
    config._attn_implementation, config.max_position_embeddings = "eager", WINDOW
    calibration = source.windows(text_of("calibration"), arguments.calibration)
    heldout = source.windows(text_of("heldout"), arguments.heldout)
    texts = [row[None] for row in calibration]
    chosen = {name: ACTIVATIONS[name] for name in ACTIVATIONS if any(text in name for text in arguments.rows)}
    for name, spec in chosen.items():
        libraries = {
            "wrappers": ours(PTQConfig(activation=spec)),
            "mechanism": ours(PTQConfig(activation=spec, steps="auto"), mechanism=True),
        }
        if peer is not None and spec.dtype.bits == 16:
            libraries["tico"] = theirs(peer, 16)
        costs, floats = rounds(libraries, model, texts, arguments.rounds)
        record.table(title_of(name, floats, f"{len(texts)} windows of {WINDOW} tokens"), *costs)
        report(costs, floats, record)
        row = [perplexity_of(each, model, texts, heldout) for each in libraries.values()]
        record.row("perplexity", *(f"{value:.3f}" for value in row))
        record.note(f"perplexity of float on {heldout.numel()} tokens: {perplexity(model, heldout, 1):.3f}")


def perplexity_of(library: Library, model: nn.Module, texts: list[Tensor], heldout: Tensor) -> float:
    """Return the perplexity of the model that is calibrated with `texts`."""
    prepared = library.prepare(copy.deepcopy(model))
    run_all(prepared, texts, library.logits)
    return perplexity(library.convert(prepared), heldout, batch=1)


def title_of(name: str, floats: list[float], texts: str) -> str:
    """Return the title of a table."""
    return f"{name}; float: {len(floats)} rounds of {texts}, {statistics.median(floats):.3f} s"


def rounds(
    libraries: Mapping[str, Library], model: nn.Module, texts: list[Tensor], count: int
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


def report(costs: Mapping[str, list[Costs]], floats: list[float], record: Recording) -> None:
    """Print seconds, their ratios to those of the float forward passes, errors and points."""
    for field in ("prepare", "calibrate", "convert", "forward"):
        seconds = {name: [getattr(each, field) for each in costs[name]] for name in costs}
        record.row(f"{field}, seconds", *(f"{statistics.median(each):.3f}" for each in seconds.values()))
        ratios = (_ratio(each, floats) for each in seconds.values())
        record.row(f"{field} / float", *(f"{ratio:.2f}" for ratio in ratios))
    record.row("points", *(str(each[-1].points) for each in costs.values()))
    record.row("error of the logits", *(f"{each[-1].error:.4f}" for each in costs.values()))


def _ratio(seconds: Iterable[float], floats: list[float]) -> float:
    return statistics.median(each / own for each, own in zip(seconds, floats, strict=True))


if __name__ == "__main__":
    main()
