"""What floating-point formats cost language models: FP8, MX formats and NVFP4, rounded, solved or learned.

Run with ``nox -s bench -- number_formats --rows MXFP4 NVFP4``: every row whose name holds one of the texts is
measured, without any all of them; `--model smollm2` takes SmolLM2-135M in the place of the model of this
repository. The blocks' linear layers are quantized, and the embedding, which is the head too, stays float.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load, text_of
from real_models import CALIBRATION_ARTICLES, TEST_ARTICLES, smollm2_directory, wiki_articles
from recorded import add_option, recording
from tico_api import GPTQConfig, PTQConfig, RotationConfig, calibrate, convert, perplexity, prepare
from tico_config import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP8,
    NVFP4,
    BaseConfig,
    BlockTuneConfig,
    FloatFormat,
    MSESpec,
    PerTensor,
    PerToken,
    QuantSpec,
    affine,
    no_quant,
)

WINDOW: Final = 512
NAMES: Final[Mapping[FloatFormat, str]] = {dtype: str(dtype).upper() for dtype in FLOAT_FORMATS}


def rounded(weight: QuantSpec, inputs: QuantSpec | None = None) -> PTQConfig:
    """Return the config that rounds the blocks' linear weights, and what they read."""
    read = no_quant() if inputs is None else inputs
    return PTQConfig(scope="linear", weight=weight, activation=read)


def solved(dtype: FloatFormat) -> GPTQConfig:
    """Return the config of GPTQ for the blocks' linear weights."""
    return GPTQConfig(dtype=dtype, show_progress=False)


def learned(dtype: FloatFormat) -> BlockTuneConfig:
    """Return the config of learned rounding for the blocks' linear weights."""
    return BlockTuneConfig(dtype=dtype, show_progress=False)


FP8_TENSOR: Final = affine(FP8(), granularity=PerTensor())
FP8_TOKEN: Final = affine(FP8(), granularity=PerToken())
SEARCHED: Final = [MXFP4(), NVFP4()]

ROWS: Final[Mapping[str, tuple[BaseConfig, ...]]] = {
    "float": (),
    "FP8_E4M3 weights per tensor": (rounded(FP8_TENSOR),),
    **{f"{NAMES[each]} weights": (rounded(affine(each)),) for each in FLOAT_FORMATS},
    **{
        f"{NAMES[each]} weights, least squared error": (rounded(affine(each, observer=MSESpec())),)
        for each in SEARCHED
    },
    "FP8_E4M3 weights and inputs, static per tensor": (rounded(FP8_TENSOR, affine(FP8())),),
    "FP8_E4M3 weights and inputs, per row and per token": (rounded(affine(FP8()), FP8_TOKEN),),
    "MXFP8_E4M3 weights and inputs": (rounded(affine(MXFP8()), affine(MXFP8())),),
    "MXFP4 weights, MXFP8_E4M3 inputs": (rounded(affine(MXFP4()), affine(MXFP8())),),
    "MXFP4 weights and inputs": (rounded(affine(MXFP4()), affine(MXFP4())),),
    "NVFP4 weights and inputs": (rounded(affine(NVFP4()), affine(NVFP4())),),
    **{f"{NAMES[each]} weights, GPTQ": (solved(each),) for each in (FP8(), *SEARCHED)},
    **{f"{NAMES[each]} weights, learned rounding": (learned(each),) for each in SEARCHED},
    **{f"{NAMES[each]} weights, rotation, GPTQ": (RotationConfig(), solved(each)) for each in SEARCHED},
}


def quantized(model: nn.Module, configs: tuple[BaseConfig, ...], calibration: Tensor) -> nn.Module:
    """Return a copy of `model` after one config after the other."""
    model = copy.deepcopy(model)
    for config in configs:
        model = prepare(model, config)
        calibrate(model, [{"input_ids": calibration, "use_cache": False}])
        model = convert(model)
    return model


def texts_for(model: str) -> tuple[str, str]:
    """Return the texts to calibrate on and to evaluate, those of ``gptq_model.py --perplexity``."""
    if model == "embedded":
        return text_of("calibration"), text_of("heldout")
    articles = wiki_articles()
    return "\n\n".join(articles[CALIBRATION_ARTICLES]), "\n\n".join(articles[TEST_ARTICLES])


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[""])
    parser.add_argument("--model", choices=["embedded", "smollm2"], default="embedded")
    parser.add_argument("--calibration", type=int, default=8192, help="tokens")
    parser.add_argument("--heldout", type=int, default=8192, help="tokens")
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = load(smollm2_directory() if arguments.model == "smollm2" else WIKI_LLAMA, WINDOW)
    texts, tokens = texts_for(arguments.model), (arguments.calibration, arguments.heldout)
    calibration, heldout = (source.windows(*pair) for pair in zip(texts, tokens, strict=True))
    title = f"{arguments.model}: calibrated on {calibration.numel()} tokens, {heldout.numel()} held out"
    with recording(arguments.result) as record:
        record.table(title, "perplexity", "CPU s", width=52)
        for name, configs in ROWS.items():
            if any(text in name for text in arguments.rows):
                start = time.process_time()
                model = quantized(source.model, configs, calibration)
                made = time.process_time() - start
                record.row(name, f"{perplexity(model, heldout, batch=1):.3f}", f"{made:.0f}")


if __name__ == "__main__":
    main()
