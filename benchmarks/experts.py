"""Mixtures of experts in integers: what GPTQ gains over rounding for each expert, and the memory it takes.

python benchmarks/experts.py                    small Qwen3-MoE and Mixtral, each trained for some minutes
python benchmarks/experts.py --steps 0          the same with random weights
python benchmarks/experts.py --only memory      the memory of a larger random layer

The models learn from the calibration text of `examples/wiki_llama`, in its 1024 tokens, and are calibrated on
a part of it. Perplexity is that of its heldout text.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from unittest import mock

import attrs
import torch
from torch import Tensor, nn
from transformers import MixtralConfig, MixtralForCausalLM, Qwen3MoeConfig, Qwen3MoeForCausalLM

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load, text_of
from recorded import Recording, add_option, recording
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    convert,
    load_quantized,
    perplexity,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import BaseConfig, DType, PerChannel, affine, no_quant
from tico_modules import LayerReport, named_modules
from tico_quantizers.calibration import GroupedGram, InputGrams, gram_bytes
from tico_quantizers.layers import layers_in
from tico_quantizers.testing import same_tensors, seeded, tensors_of

WINDOW: Final = 128
SIZES: Final = {
    "vocab_size": 1024,
    "hidden_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 24,
    "max_position_embeddings": 256,
    "num_experts_per_tok": 2,
    "output_router_logits": True,  # so that training spreads the tokens over the experts
    "router_aux_loss_coef": 0.05,
}


def qwen3() -> nn.Module:
    """Return a model with 16 experts a layer, each of 2 matrices in parameters that all of them share."""
    sizes = {"num_experts": 16, "moe_intermediate_size": 128, "intermediate_size": 128}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig.from_dict({**SIZES, **sizes}))


def mixtral() -> nn.Module:
    """Return a model with 8 experts a layer."""
    return MixtralForCausalLM(
        MixtralConfig.from_dict({**SIZES, "num_local_experts": 8, "intermediate_size": 192})
    )


MODELS: Final[dict[str, Callable[[], nn.Module]]] = {"Qwen3-MoE": qwen3, "Mixtral": mixtral}


@attrs.frozen(eq=False)
class Texts:
    """Windows of tokens: to train and calibrate on, and to measure on."""

    training: Tensor
    heldout: Tensor


def train(model: nn.Module, windows: Tensor, steps: int) -> None:
    """Fit `model` to `windows` with AdamW, always in the same order."""
    model.train()
    rates = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1)
    chance = torch.Generator().manual_seed(0)
    for step in range(steps):
        for group in rates.param_groups:
            group["lr"] = 3e-3 * min(1.0, (step + 1) / 20) * (1 - step / steps)
        batch = windows[torch.randint(len(windows), (8,), generator=chance)]
        loss: Tensor = model(input_ids=batch, labels=batch).loss
        torch.autograd.backward(loss)
        rates.step()
        rates.zero_grad()
    model.eval()


def ways(bits: int) -> dict[str, BaseConfig]:
    """Return the configs to compare, by the name of their row; embeddings and head stay float."""
    ends = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
    weight = affine(DType.uint(bits), granularity=PerChannel(0))
    routers = {"re:.*\\.(gate|router)": no_quant()}
    plain = GPTQConfig(bits=bits, show_progress=False)
    return {
        "round to nearest": PTQConfig(
            activation=no_quant(), weight=weight, strict_wrap=False, overrides=ends | routers
        ),
        "AWQ": AWQConfig(bits=bits, group_size=None, show_progress=False),
        "GPTQ": plain,
        "GPTQ, all tokens to all": attrs.evolve(plain, calibrate_all_experts=True),
        "GPTQ, asymmetric": attrs.evolve(plain, asymmetric=0.25),
    }


def quantized(model: nn.Module, config: BaseConfig, windows: Tensor) -> nn.Module:
    """Return a copy of `model` quantized on `windows`."""
    prepared = prepare(copy.deepcopy(model), config)
    with torch.no_grad():
        for batch in torch.split(windows, 8):
            prepared(input_ids=batch)
    return convert(prepared)


def expert_lines(model: nn.Module) -> list[dict[str, float]]:
    """Return the figures of the matrices of experts that GPTQ has solved for."""
    lines: Iterator[LayerReport] = (line for line in report(model).layers if ".experts." in line.path)
    figures = (dict(line.figures) for line in lines)
    return [each for each in figures if "loss" in each]


def reloaded(model: nn.Module, tokens: Tensor) -> str:
    """Return whether a saved model gives the same bits when it is loaded."""
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_quantized(model, folder)
        same = torch.equal(load_quantized(folder)(tokens).logits, model(tokens).logits)
    return "same bits" if same else "OTHER BITS"


def compare(name: str, texts: Texts, options: argparse.Namespace, record: Recording) -> None:
    """Print a row for each way to quantize a model."""
    steps: int = options.steps
    bits: int = options.bits
    model = seeded(MODELS[name])
    train(model, texts.training, steps)
    title = f"{name}, {steps} steps of training, {bits} bits, {texts.training[:64].numel()} tokens"
    record.table(title, "perplexity", "better", "median loss", "worst loss", "tokens", "reloaded", "seconds")
    record.row("float", f"{perplexity(model, texts.heldout, batch=8):.2f}")
    for way, config in ways(bits).items():
        start = time.perf_counter()
        found = quantized(model, config, texts.training[:64])
        seconds = time.perf_counter() - start
        score = f"{perplexity(found, texts.heldout, batch=8):.2f}"
        cells = gains(expert_lines(found))
        record.row(way, score, *cells, reloaded(found, texts.heldout[:4]), f"{seconds:.1f}")


def gains(lines: Sequence[dict[str, float]]) -> tuple[str, str, str, str]:
    """Return how many experts have less loss than if rounded, median and largest share of it, and tokens.

    Of all that have read at least twice as many tokens as the widest of them has inputs.
    """
    if not lines:
        return "", "", "", ""
    enough = [line for line in lines if line["tokens"] >= 2 * 192]
    shares = sorted(line["loss"] / line["loss if rounded to nearest"] for line in enough)
    better = sum(share < 1 for share in shares)
    tokens = sorted(int(line["tokens"]) for line in lines)
    middle = int(statistics.median(tokens))
    return (
        f"{better} of {len(shares)}",
        f"{statistics.median(shares):.2f}",
        f"{shares[-1]:.2f}",
        f"{tokens[0]}-{middle}-{tokens[-1]}",
    )


@contextmanager
def most_held() -> Iterator[list[float]]:
    """Yield a list whose one number is the most MiB that Gram matrices of a block hold in the context."""
    most, accept = [0.0], InputGrams.accept

    def noting(grams: InputGrams) -> None:
        accept(grams)
        kept = (each for held in vars(grams).values() if isinstance(held, dict) for each in held.values())
        parts = (part for each in kept if isinstance(each, GroupedGram) for part in each.parts)
        tensors = (tensor.untyped_storage() for part in parts for tensor in (*part.upper, *part.pending))
        sizes = {storage.data_ptr(): storage.nbytes() for storage in tensors}
        most[0] = max(most[0], sum(sizes.values()) / 2**20)

    with mock.patch.object(InputGrams, "accept", noting):
        yield most


def memory(record: Recording) -> None:
    """Print what Gram matrices of a block of 16 experts take, with and without a limit."""
    sizes = {"num_experts": 16, "moe_intermediate_size": 768, "hidden_size": 384, "intermediate_size": 768}
    config = Qwen3MoeConfig.from_dict({**SIZES, **sizes, "num_hidden_layers": 2})
    model = seeded(lambda: Qwen3MoeForCausalLM(config))
    tokens = torch.randint(3, 1024, (32, 256), generator=torch.Generator().manual_seed(0))
    expected: dict[str, Tensor] = {}
    record.table("memory, 2 layers of 16 experts, 8192 tokens", "bound", "most held", "seconds", "codes")
    for limit in (None, 64, 24):
        given = None if limit is None else limit * 2**20
        plain = GPTQConfig(show_progress=False, token_weights="uniform", gram_memory=given)
        prepared = prepare(copy.deepcopy(model), plain)
        with torch.no_grad():
            for batch in torch.split(tokens, 8):
                prepared(input_ids=batch)
        block = dict(named_modules(prepared))["model.layers.0"]
        bound = sum(map(gram_bytes, layers_in(block).values())) / 2**20 if limit is None else float(limit)
        start = time.perf_counter()
        with most_held() as held:
            found = tensors_of(convert(prepared))
        seconds = time.perf_counter() - start
        expected = expected or found
        same = "same bits" if same_tensors(found, expected) else "OTHER BITS"
        record.row(
            f"gram_memory {limit or 'None'}", f"{bound:.0f} MiB", f"{held[0]:.0f} MiB", f"{seconds:.1f}", same
        )


def options_from(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compare ways to quantize mixtures of experts.")
    parser.add_argument("--steps", type=int, default=300, help="steps of training; 0 for random weights")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--only", choices=(*MODELS, "memory"), nargs="*")
    add_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    """Print a table for each model, and one for memory."""
    options = options_from()
    only: list[str] = options.only or [*MODELS, "memory"]
    source = load(WIKI_LLAMA, WINDOW)
    texts = Texts(
        source.windows(text_of("calibration"), 2**18), source.windows(text_of("heldout"), 64 * WINDOW)
    )
    with recording(options.result) as record:
        for name in (each for each in MODELS if each in only):
            compare(name, texts, options, record)
        if "memory" in only:
            memory(record)


if __name__ == "__main__":
    main()
