"""What quantizing SmolLM2-135M costs, by which points are quantized and how, next to Samsung's tico.

Run with ``nox -s bench -- wrapq_perplexity --rows W8A16 --peer-path DIR``: every row whose name holds one of
the texts is measured, without any all of them. Model and texts are those of ``quickstart.py --smollm2``. DIR
holds tico, as `tico_peer` says; its buffers grow with the square of the longest text, so that is 512 here.
"""

from __future__ import annotations

import argparse
import copy
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import load, text_of
from real_models import smollm2_directory
from recorded import Recording, add_option, recording
from tico_api import GPTQConfig, PTQConfig, calibrate, convert, perplexity, prepare
from tico_config import BaseConfig, DType, PerToken, QuantSpec, affine, no_quant
from tico_peer import Tico, tico_from

WINDOW: Final = 512
A8: Final = affine(DType.uint(8))
A16: Final = affine(DType.int(16))
TOKEN: Final = affine(DType.int(8), granularity=PerToken())
ASYMMETRIC: Final = affine(DType.uint(8), granularity=PerToken())
U16: Final = affine(DType.uint(16))
U16_TOKEN: Final = affine(DType.uint(16), granularity=PerToken())


def inputs(spec: QuantSpec, more: Mapping[str, QuantSpec] | None = None) -> PTQConfig:
    """Return the config that gives a grid to the weights and to what enters the blocks' linear layers."""
    return PTQConfig(activation=no_quant(), overrides={"*_proj.act_in": spec, **(more or {})})


# Where the outliers are: what adds up from layer to layer, and what enters and leaves `down_proj`.
OUTLIERS: Final = {
    "*norm.act_in": U16,
    "*.attention_sum": U16,
    r"re:model\.layers\.[0-9]+\.act_out": U16,
    "*.product": U16,
    "*.down_proj.act_in": U16,
    "*.down_proj.act_out": U16,
}

# Single tokens are far larger than the others, and their squares even more so.
NORM_STEPS: Final = ("*.square", "*.mean", "*.inverse_root")

ROWS: Final[Mapping[str, tuple[BaseConfig, ...]]] = {
    "float": (),
    "W8": (PTQConfig(activation=no_quant()),),
    "W8A16 asymmetric, every point": (PTQConfig(activation=U16),),
    "W8A16 symmetric, every point": (PTQConfig(activation=A16),),
    "W8A16 symmetric, linear inputs": (inputs(A16),),
    "W8A16 asymmetric, every step": (PTQConfig(activation=U16, variant="stepwise"),),
    "W8A16 asymmetric, every step, norms' per token": (
        PTQConfig(activation=U16, variant="stepwise", overrides=dict.fromkeys(NORM_STEPS, U16_TOKEN)),
    ),
    "W8A8 per token asymmetric, every step": (PTQConfig(activation=ASYMMETRIC, variant="stepwise"),),
    "W8A8 per token, every point": (PTQConfig(activation=TOKEN),),
    "W8A8 per token asymmetric, every point": (PTQConfig(activation=ASYMMETRIC),),
    "W8A8 per token, linear inputs": (inputs(TOKEN),),
    "W8A8 per token asymmetric, linear inputs": (inputs(ASYMMETRIC),),
    "W8A8 static, every point": (PTQConfig(activation=A8),),
    "W8A8 static, every point, outliers A16": (PTQConfig(activation=A8, overrides=OUTLIERS),),
    "W8A8 static, linear inputs": (inputs(A8),),
    "W8A8 static, linear inputs, down_proj A16": (inputs(A8, {"*.down_proj.act_in": A16}),),
    "GPTQ W4, then A16, every point": (GPTQConfig(bits=4), PTQConfig(activation=U16)),
}
PEER_ROWS: Final = {"tico W8A16, every point": 16, "tico W8A8 static, every point": 8}


def quantized(model: nn.Module, configs: tuple[BaseConfig, ...], calibration: Tensor) -> nn.Module:
    """Return a copy of `model` after one config after the other."""
    model = copy.deepcopy(model)
    for config in configs:
        model = prepare(model, config)
        if config != ROWS["W8"][0]:
            calibrate(model, [{"input_ids": calibration, "use_cache": False}])
        model = convert(model)
    return model


def quantized_by(peer: Tico, model: nn.Module, bits: int, calibration: Tensor) -> nn.Module:
    """Return a copy of `model` quantized by tico."""
    model = peer.prepare(copy.deepcopy(model), bits)
    with torch.no_grad():
        for row in calibration:
            peer.logits(model, row[None])
    return peer.convert(model)


def measure(name: str, make: Callable[[], nn.Module], heldout: Tensor, record: Recording) -> None:
    """Print one row."""
    start = time.process_time()
    model = make()
    made = time.process_time() - start
    record.row(name, f"{perplexity(model, heldout, batch=1):.3f}", f"{made:.0f}")


def main() -> None:
    """Measure the rows asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", nargs="*", default=[""])
    parser.add_argument("--calibration", type=int, default=4096, help="tokens")
    parser.add_argument("--heldout", type=int, default=8192, help="tokens")
    parser.add_argument("--peer-path", type=Path)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    source = load(smollm2_directory(), WINDOW)
    calibration = source.windows(text_of("calibration"), arguments.calibration)
    heldout = source.windows(text_of("heldout"), arguments.heldout)
    title = f"calibrated on {calibration.numel()} tokens, {heldout.numel()} held out"
    peer = tico_from(arguments.peer_path)
    with recording(arguments.result) as record:
        record.table(title, "perplexity", "CPU s", width=46)
        for name, configs in ROWS.items():
            if any(text in name for text in arguments.rows):
                measure(name, partial(quantized, source.model, configs, calibration), heldout, record)
        for name, bits in PEER_ROWS.items():
            if peer is not None and any(text in name for text in arguments.rows):
                getattr(source.model, "config").max_position_embeddings = WINDOW  # noqa: B009  # torch's type
                make = partial(quantized_by, peer, source.model, bits, calibration)
                measure(name, make, heldout, record)


if __name__ == "__main__":
    main()
