"""Measure what SmoothQuant and AWQ do for SmolLM2-135M: perplexity on text that was not calibrated on.

python benchmarks/smoothing.py w8a8 w4              every row of both tables
python benchmarks/smoothing.py w4 --rows awq gptq   some rows of one
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Mapping
from typing import Final

import attrs
from torch import Tensor, nn

from language_models import LanguageModel, calibrate, load, perplexity
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from tico.quantization import AWQConfig, GPTQConfig, PTQConfig, SmoothQuantConfig, convert, prepare
from tico.quantization.config import (
    BaseConfig,
    DType,
    PerChannel,
    PerGroup,
    QScheme,
    affine,
    no_quant,
)

WINDOW: Final = 512
GROUP: Final = 128
NORMS_ONLY: Final = {
    "*.input_layernorm": ["*.q_proj", "*.k_proj", "*.v_proj"],
    "*.post_attention_layernorm": ["*.gate_proj", "*.up_proj"],
}


def layers_only(weight: Mapping[str, object], inputs: Mapping[str, object]) -> PTQConfig:
    """Return a config for the linear layers of the blocks and nothing else."""
    return PTQConfig(activation=no_quant(), weight=no_quant(), overrides={**weight, **inputs})


W8A8: Final = layers_only(
    {"*_proj.weight": affine(DType.int(8), QScheme.PER_CHANNEL_SYMM, granularity=PerChannel(0))},
    {"*_proj.act_in": affine(DType.uint(8))},
)
W4: Final = layers_only(
    {"*_proj.weight": affine(DType.uint(4), granularity=PerGroup(axis=1, size=GROUP))}, {}
)
GPTQ: Final = GPTQConfig(bits=4, group_size=GROUP, ragged_groups=True, show_progress=False)
AWQ: Final = AWQConfig(bits=4, group_size=GROUP, ragged_groups=True, show_progress=False)

TABLES: Final[Mapping[str, Mapping[str, tuple[BaseConfig, ...]]]] = {
    "w8a8": {
        "float": (),
        "static": (W8A8,),
        "norms-0.5": (SmoothQuantConfig(alpha=0.5, mappings=NORMS_ONLY), W8A8),
        "smooth-0.5": (SmoothQuantConfig(alpha=0.5), W8A8),
        "smooth-0.7": (SmoothQuantConfig(alpha=0.7), W8A8),
        "smooth-auto": (SmoothQuantConfig(alpha="auto"), W8A8),
    },
    "w4": {
        "rtn": (W4,),
        "gptq": (GPTQ,),
        "awq": (AWQ,),
        "awq-gptq": (attrs.evolve(AWQ, round_weights=False, clip=False), GPTQ),
        "clipped-gptq": (attrs.evolve(AWQ, round_weights=False), GPTQ),
    },
}


@attrs.frozen(eq=False, kw_only=True)
class Data:
    """The model with its calibration and test windows."""

    language: LanguageModel
    calibration: Tensor
    heldout: Tensor


def load_data(calibration: int, heldout: int) -> Data:
    """Return SmolLM2 and so many tokens, spread evenly over the articles."""
    language, articles = load(smollm2_directory(), WINDOW), wiki_articles()
    texts = ("\n\n".join(articles[part]) for part in (CALIBRATION_ARTICLES, TEST_ARTICLES))
    windows = [
        language.windows(text, limit) for text, limit in zip(texts, (calibration, heldout), strict=True)
    ]
    return Data(language=language, calibration=windows[0], heldout=windows[1])


def quantized(model: nn.Module, configs: tuple[BaseConfig, ...], windows: Tensor) -> nn.Module:
    """Return a copy of `model` to which each of `configs` was applied, one after the other."""
    model = copy.deepcopy(model)
    for config in configs:
        model = prepare(model, config)
        calibrate(model, windows)
        model = convert(model)
    return model


def main() -> None:
    """Print a line for each row."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("tables", nargs="+", choices=TABLES)
    parser.add_argument("--rows", nargs="+", help="only these rows")
    parser.add_argument("--calibration", type=int, default=4096, help="tokens")
    parser.add_argument("--heldout", type=int, default=8192, help="tokens")
    options = parser.parse_args()
    data = load_data(options.calibration, options.heldout)
    print(f"{'row':<14} {'perplexity':>10} {'seconds':>8}")
    for table in options.tables:
        for name, configs in TABLES[table].items():
            if options.rows is None or name in options.rows:
                start = time.perf_counter()
                model = quantized(data.language.model, configs, data.calibration)
                seconds = time.perf_counter() - start
                print(f"{name:<14} {perplexity(model, data.heldout):>10.3f} {seconds:>8.1f}", flush=True)


if __name__ == "__main__":
    main()
