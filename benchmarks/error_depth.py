"""How the error of a quantized language model grows from block to block.

Run with ``nox -s bench -- error_depth``: the embedded model, weights of 3 bits in groups of 64. An error is
‖quantized - float‖² / ‖float‖² of a block's output over held-out text. A block's own error is that on the
inputs of the float block. The accumulated error is that in the quantized model: earlier blocks add to it.
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load, text_of
from recorded import add_option, recording
from tico_api import BlockTuneConfig, GPTQConfig, HQQConfig, calibrate, compare, convert, prepare
from tico_config import BaseConfig
from tico_quantizers.evaluation import Comparison

WINDOW: Final = 256


def configs(bits: int, group_size: int) -> Mapping[str, BaseConfig]:
    """Return the methods that are compared."""
    return {
        "HQQ": HQQConfig(bits=bits, group_size=group_size, show_progress=False),
        "GPTQ": GPTQConfig(bits=bits, group_size=group_size, show_progress=False),
        "BlockTune": BlockTuneConfig(bits=bits, group_size=group_size, show_progress=False),
    }


def measured(model: nn.Module, config: BaseConfig, calibration: Tensor, heldout: Tensor) -> Comparison:
    """Return how far a copy of `model` that `config` has quantized is from it."""
    prepared = prepare(copy.deepcopy(model), config)
    calibrate(prepared, [{"input_ids": calibration, "use_cache": False}])
    return compare(model, convert(prepared), [{"input_ids": heldout, "use_cache": False}])


def main() -> None:
    """Print a table of own errors and one of accumulated errors, a row for each block."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--bits", type=int, default=3)
    parser.add_argument("--group-size", type=int, default=64)
    parser.add_argument("--tokens", type=int, default=8192, help="tokens to calibrate on, and held out")
    add_option(parser)
    options = parser.parse_args()
    torch.set_num_threads(1)
    source = load(WIKI_LLAMA, WINDOW)
    texts = [source.windows(text_of(name), options.tokens) for name in ("calibration", "heldout")]
    methods = configs(options.bits, options.group_size)
    found = {name: measured(source.model, config, *texts) for name, config in methods.items()}
    with recording(options.result) as record:
        for kind in ("own", "accumulated"):
            title = f"{kind} error, wiki_llama, W{options.bits} g{options.group_size}"
            record.table(title, *found)
            for lines in zip(*(each.lines for each in found.values()), strict=True):
                cells = (line.own if kind == "own" else line.accumulated for line in lines)
                record.row(lines[0].path, *(f"{cell:.4f}" for cell in cells))


if __name__ == "__main__":
    main()
