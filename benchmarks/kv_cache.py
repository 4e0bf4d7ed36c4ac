"""What a cache of codes costs in perplexity and saves in bytes: texts of 2,048 tokens, by width and grids.

python benchmarks/kv_cache.py               SmolLM2-135M-Instruct, two texts of 2,048 tokens
python benchmarks/kv_cache.py --embedded    the embedded model, texts of 256 tokens
python benchmarks/kv_cache.py --window 512 --part 512 --tokens 8192     the texts of the other tables

A text is read at once, so that every token attends to all earlier ones as codes but for those of the last
window, and in parts of 128 tokens, where each part finds the tokens just before it still as floats.
Static grids are calibrated on another text of the same length. Bytes are those of all tensors in the cache of
one text after it was read, scales and the float window among them.
"""

from __future__ import annotations

import argparse
import copy
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, LanguageModel, load, text_of
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from recorded import add_option, recording
from tico.quantization import KVCacheConfig, cache_bytes, calibrate, convert, prepare
from tico.quantization.config import FP8, DType, PerChannel, PerTensor, PerToken, affine

INT8: Final = DType.int(8)
UINT4: Final = DType.uint(4)
UINT2: Final = DType.uint(2)


def same(dtype: DType | FP8, **fields: object) -> KVCacheConfig:
    """Return a config with one format for keys and values, and their own default grids."""
    return KVCacheConfig(key=affine(dtype), value=affine(dtype), **fields)  # type: ignore[arg-type]


def static(unit: PerTensor | PerChannel, dtype: DType | FP8 = INT8) -> KVCacheConfig:
    """Return a config with static 8-bit grids of one kind, and no window."""
    spec = affine(dtype, granularity=unit)
    return KVCacheConfig(key=spec, value=spec, static=True, residual_length=0)


def per_token(dtype: DType) -> KVCacheConfig:
    """Return a config with a grid for each token of each head."""
    spec = affine(dtype, granularity=PerToken())
    return KVCacheConfig(key=spec, value=spec)


CONFIGS: Final[Mapping[str, KVCacheConfig | None]] = {
    "float": None,
    "8 bits": same(INT8),
    "8 bits, static, layer": static(PerTensor()),
    "8 bits, static, channel": static(PerChannel(-1)),
    "FP8 e4m3, a scale a token": same(FP8("e4m3"), residual_length=0),
    "FP8 e5m2, a scale a token": same(FP8("e5m2"), residual_length=0),
    "FP8 e4m3, static, layer": static(PerTensor(), FP8("e4m3")),
    "FP8 e4m3, static, head": static(PerChannel(1), FP8("e4m3")),
    "FP8 e4m3, static, channel": static(PerChannel(-1), FP8("e4m3")),
    "4 bits (default)": same(UINT4),
    "4 bits, a grid a token": per_token(UINT4),
    "2 bits": same(UINT2),
    "2 bits, groups of 16": same(UINT2, group_size=16),
}


def texts(source: LanguageModel, options: argparse.Namespace) -> tuple[Tensor, Tensor]:
    """Return windows to calibrate on and to measure on."""
    tokens: int = options.tokens
    if options.embedded:
        calibration, heldout = text_of("calibration"), text_of("heldout")
    else:
        articles = wiki_articles()
        calibration = "\n\n".join(articles[CALIBRATION_ARTICLES])
        heldout = "\n\n".join(articles[TEST_ARTICLES])
    return source.windows(calibration, source.window), source.windows(heldout, tokens)


def read(model: nn.Module, windows: Tensor, part: int) -> tuple[float, int]:
    """Return the perplexity of `windows`, read `part` tokens at a time, and the bytes of the cache of one."""
    losses, size = [], 0
    with torch.no_grad():
        for window in windows.split(1):  # type: ignore[no-untyped-call]
            cache, logits = None, []
            for tokens in window.split(part, dim=1):
                output = model(tokens, past_key_values=cache, use_cache=True)
                cache = output.past_key_values
                logits.append(output.logits)
            said = torch.cat(logits, 1)[0, :-1]
            losses.append(nn.functional.cross_entropy(said, window[0, 1:], reduction="none"))
            size = cache_bytes(cache)
    return math.exp(torch.cat(losses).double().mean().item()), size


def options_from(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return what the command line asks for."""
    parser = argparse.ArgumentParser(description="Measure caches of codes.")
    parser.add_argument("--embedded", action="store_true", help="take the embedded model")
    parser.add_argument("--tokens", type=int, default=4096, help="tokens to measure on")
    parser.add_argument("--window", type=int, default=2048, help="tokens of a text")
    parser.add_argument("--part", type=int, default=128, help="tokens that are read at a time, where not all")
    parser.add_argument("--only", nargs="*", help="rows whose names hold one of these words")
    add_option(parser)
    return parser.parse_args(arguments)


def main() -> None:
    """Print a row for each config."""
    options = options_from()
    source = load(WIKI_LLAMA, 256) if options.embedded else load(smollm2_directory(), options.window)
    calibration, windows = texts(source, options)
    only: list[str] | None = options.only
    part: int = options.part
    title = f"{len(windows)} texts of {source.window} tokens"
    with recording(options.result) as out:
        out.table(title, "at once", f"by {part}", "bytes", "of float")
        whole = 0
        for name, config in CONFIGS.items():
            if only and not any(word in name for word in only) and config is not None:
                continue
            model = source.model
            if config is not None:
                model = prepare(copy.deepcopy(source.model), config)
                model = convert(calibrate(model, [calibration] if config.static else []))
            at_once, size = read(model, windows, source.window)
            in_parts = at_once if part >= source.window else read(model, windows, part)[0]
            whole = whole or size
            out.row(name, f"{at_once:.3f}", f"{in_parts:.3f}", f"{size:,}", f"{size / whole:.3f}")


if __name__ == "__main__":
    main()
