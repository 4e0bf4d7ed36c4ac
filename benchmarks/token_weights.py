"""What the weights of tokens in GPTQ's Hessian gain: perplexity of a language model, for each way to weigh.

python benchmarks/token_weights.py                             the embedded model, 3 bits, on tuning text
python benchmarks/token_weights.py --smollm2 --bits 4 --test   SmolLM2-135M on the test text

The calibration text is articles 0 to 59 of Wikipedia, the tuning text 60 to 69, the test text the last 24
(the embedded model, which was trained on the former ones, has texts of its own for both). Perplexity is
computed in bfloat16, which is as good for weights alone.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import attrs
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, LanguageModel, load, text_of
from real_models import (
    CALIBRATION_ARTICLES,
    TEST_ARTICLES,
    TUNING_ARTICLES,
    smollm2_directory,
    wiki_articles,
)
from recorded import add_option, recording
from tico.quantization import GPTQConfig, PTQConfig, calibrate, convert, perplexity, prepare
from tico.quantization.config import (
    BaseConfig,
    DType,
    MinMaxSpec,
    PerChannel,
    PerGroup,
    affine,
    no_quant,
)

FLOAT_ENDS = {"model.embed_tokens": no_quant(), "lm_head": no_quant()}
Ways: TypeAlias = dict[str, BaseConfig]


@attrs.frozen(eq=False)
class Texts:
    """Windows of tokens to calibrate on and to measure on."""

    calibration: Tensor
    heldout: Tensor


def texts(source: LanguageModel, options: argparse.Namespace) -> Texts:
    """Return the windows that the command line asks for."""
    heldout_tokens: int = options.heldout_tokens
    calibration_tokens: int = options.tokens
    if options.smollm2:
        articles = wiki_articles()
        heldout = "\n\n".join(articles[TEST_ARTICLES if options.test else TUNING_ARTICLES])
        calibration = "\n\n".join(articles[CALIBRATION_ARTICLES])
    else:
        calibration, heldout = text_of("calibration"), text_of("heldout")
        # The first half of what it has not seen is for tuning, the second for tests.
        half = len(heldout) // 2
        heldout = heldout[half:] if options.test else heldout[:half]
    return Texts(source.windows(calibration, calibration_tokens), source.windows(heldout, heldout_tokens))


def ways(options: argparse.Namespace) -> Ways:
    """Return the configs to compare, by the name of their row."""
    bits: int = options.bits
    group: int | None = options.group_size
    units = PerChannel(0) if group is None else PerGroup(1, group)
    weight = affine(DType.uint(bits), granularity=units)
    nearest = PTQConfig(activation=no_quant(), weight=weight, overrides=FLOAT_ENDS)
    act_order: bool = options.act_order
    paper = GPTQConfig(row_gain=False, static_groups=False, observer=MinMaxSpec(), token_weights="uniform")
    plain = attrs.evolve(paper, bits=bits, group_size=group, act_order=act_order)
    return {
        "round to nearest": nearest,
        "GPTQ, uniform": plain,
        "GPTQ, first token 200": attrs.evolve(plain, token_weights=(200.0,)),
        "GPTQ, auto": attrs.evolve(plain, token_weights="auto"),
    }


def quantized(model: nn.Module, config: BaseConfig, windows: Tensor, *, bfloat16: bool) -> nn.Module:
    """Return a copy of `model` quantized as `config` says."""
    prepared = prepare(copy.deepcopy(model), config)
    if isinstance(config, GPTQConfig):
        with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16):
            calibrate(prepared, [{"input_ids": windows, "use_cache": False}])
    return convert(prepared)


def score(model: nn.Module, windows: Tensor) -> float:
    """Return the perplexity of `windows`."""
    with torch.autocast("cpu", torch.bfloat16):
        return perplexity(model, windows, batch=2)


def options_from(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="Compare ways to weigh the tokens of calibration text.")
    parser.add_argument("--smollm2", action="store_true", help="fetch and take SmolLM2-135M-Instruct")
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, help="columns that share a scale (default: a whole row)")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to calibrate on")
    parser.add_argument("--heldout-tokens", type=int, default=8192)
    parser.add_argument("--test", action="store_true", help="measure on the test text, not the tuning text")
    parser.add_argument("--bfloat16", action="store_true", help="calibrate in bfloat16, too")
    parser.add_argument("--only", nargs="*", help="rows whose names hold one of these words")
    add_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    """Print a row for each way."""
    options = options_from()
    source = load(smollm2_directory(), 512) if options.smollm2 else load(WIKI_LLAMA, 256)
    data = texts(source, options)
    only: list[str] | None = options.only
    title = f"{data.calibration.numel()} tokens to calibrate on, {data.heldout.numel()} held out"
    with recording(options.result) as record:
        record.table(title, "perplexity", "seconds")
        if not only or "float" in only:
            record.row("float", f"{score(source.model, data.heldout):.2f}")
        for name, config in ways(options).items():
            if only and not any(word in name for word in only):
                continue
            start = time.perf_counter()
            model = quantized(source.model, config, data.calibration, bfloat16=options.bfloat16)
            seconds = time.perf_counter() - start
            record.row(name, f"{score(model, data.heldout):.2f}", f"{seconds:.1f}")


if __name__ == "__main__":
    main()
