"""4-bit files of a trained LLaMA against those of llama.cpp's own quantizer, at equal bytes.

All are run by llama.cpp, and compared with the float model of transformers on text held out. The embedding
and the head are float16. llama.cpp comes with `pip install 'tico-export[gguf]'`.

    python benchmarks/llama_cpp_quantizer.py [--windows N] [--result FILE]
"""

from __future__ import annotations

import argparse
import importlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import recorded
from llama_cpp_types import WIKI, quantized, windows
from tico.quantization.config import DType
from tico_export import GGUF, Example, export
from tico_export.gguf_files import llama_cpp
from tico_modules import QuantizedLinear

FILE_TYPES: Final = {"Q4_0": 2, "Q4_1": 3}
_FLOAT16: Final = 1
_KEPT: Final = "model.layers.0.self_attn.k_proj"


def float_model() -> nn.Module:
    """Return the model as it was trained."""
    model: nn.Module = LlamaForCausalLM.from_pretrained(WIKI, dtype=torch.float32, local_files_only=True)
    return model


def float_file(folder: Path) -> Path:
    """Write the float model; one layer of 8 bits makes it a converted one."""
    model, path = float_model(), folder / "float.gguf"
    layer = model.get_submodule(_KEPT)
    if isinstance(layer, nn.Linear):
        model.set_submodule(
            _KEPT, QuantizedLinear.from_float(layer, DType.int(8), symmetric=True, group_size=32)
        )
    export(model, path, GGUF(), verify=False)
    return path


def own_file(source: Path, kind: str) -> Path:
    """Have llama.cpp quantize a file."""
    runtime, path = importlib.import_module("cyllama.llama.llama_cpp"), source.with_name(f"own-{kind}.gguf")
    parameters = runtime.LlamaModelQuantizeParams()
    parameters.ftype, parameters.allow_requantize = FILE_TYPES[kind], True
    parameters.token_embedding_type = parameters.output_tensor_type = _FLOAT16
    runtime.model_quantize(str(source), str(path), parameters)
    return path


def our_file(folder: Path, kind: str, calibration: Tensor | None) -> Path:
    """Write the model rounded to nearest, or by GPTQ with data."""
    path = folder / f"ours-{kind}-{calibration is None}.gguf"
    export(quantized(WIKI, kind, calibration), path, GGUF(floats="float16"), verify=False)
    return path


def row(path: Path, tokens: Tensor, expected: Tensor) -> list[str]:
    """Return the divergence from the float model, perplexity and megabytes of a file."""
    [logits] = llama_cpp([]).run(path, Example(args=(tokens,)))
    found = F.log_softmax(logits.double(), -1)
    kl = (expected.exp() * (expected - found)).sum(-1).mean().item()
    perplexity = (-found[:, :-1].gather(-1, tokens[:, 1:, None])).mean().exp().item()
    return [f"{kl:.4f}", f"{perplexity:.3f}", f"{path.stat().st_size / 1e6:.3f}"]


def main() -> None:
    """Print a line for each file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--windows", type=int, default=8)
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    test = windows(WIKI, (WIKI / "heldout.txt").read_text(encoding="utf-8"), options.windows)
    given = windows(WIKI, (WIKI / "calibration.txt").read_text(encoding="utf-8"), 24)
    with torch.no_grad():
        expected = F.log_softmax(float_model()(test, use_cache=False).logits.double(), -1)
    with recorded.recording(options.result) as out, tempfile.TemporaryDirectory() as name:
        source = float_file(Path(name))
        out.table("Of the float model, by llama.cpp", "KL", "perplexity", "MB", width=28)
        out.row("float32", *row(source, test, expected))
        for kind in FILE_TYPES:
            out.row(f"{kind}, llama.cpp's own", *row(own_file(source, kind), test, expected))
            out.row(f"{kind}, rounded to nearest", *row(our_file(Path(name), kind, None), test, expected))
            out.row(f"{kind}, GPTQ", *row(our_file(Path(name), kind, given), test, expected))


if __name__ == "__main__":
    main()
