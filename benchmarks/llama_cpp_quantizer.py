"""Files of a trained LLaMA against those of llama.cpp's own quantizer, with an importance matrix and without.

All are run by llama.cpp, and compared with the float model of transformers on text held out. The importance
matrix is written from the calibration of GPTQ. The embedding and the head are float16. Where 256 does not
divide the columns, a weight has Q8_0 beside Q6_K, Q5_1 beside Q5_K, and Q5_0 beside Q4_K, whose files have
Q5_K for the values of the first four layers' attention. llama.cpp comes with
`pip install 'tico-export[gguf]'`, and `pip install gguf` reads the importance matrix.

    python benchmarks/llama_cpp_quantizer.py [--kinds NAME …] [--windows N] [--result FILE]
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import logging
import tempfile
import warnings
from pathlib import Path
from typing import ClassVar, Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM

import recorded
from llama_cpp_types import WIKI, quantized, windows
from tico.quantization import GPTQConfig, prepare, save_calibration
from tico.quantization.config import DType
from tico_export import GGUF, Example, export, write_imatrix
from tico_export.gguf_files import llama_cpp
from tico_modules import QuantizedLinear

FILE_TYPES: Final = {"Q4_0": 2, "Q4_1": 3, "Q4_K": 14, "Q5_K": 16, "Q6_K": 18}
_PURE: Final = ("Q4_0", "Q4_1")
_FLOAT16: Final = 1
# Where the parameters of cyllama 0.2.18 hold those of llama.cpp, and where these point to the importances.
_PARAMETERS: Final = 24
_FILE_TYPE: Final = _PARAMETERS + 4
_IMPORTANCE: Final = _PARAMETERS + 24
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


class _Importance(ctypes.Structure):
    """What llama.cpp is told of one weight; one without a name ends the list."""

    _fields_: ClassVar = [
        ("name", ctypes.c_char_p),
        ("values", ctypes.POINTER(ctypes.c_float)),
        ("size", ctypes.c_size_t),
    ]


def importances(path: Path) -> ctypes.Array[_Importance]:
    """Return the means of squares that stand in a file, as ``llama-quantize`` reads it."""
    tensors = {
        each.name: each.data.reshape(-1).tolist()
        for each in importlib.import_module("gguf").GGUFReader(path).tensors
    }
    names = [name.removesuffix(".counts") for name in tensors if name.endswith(".counts")]
    listed = (_Importance * (len(names) + 1))()
    for place, name in zip(listed, names, strict=False):
        means = [value / tensors[f"{name}.counts"][0] for value in tensors[f"{name}.in_sum2"]]
        place.name, place.values, place.size = (
            name.encode(),
            (ctypes.c_float * len(means))(*means),
            len(means),
        )
    return listed


def own_file(source: Path, kind: str, importance: Path | None) -> Path:
    """Have llama.cpp quantize a file, as far as it can to one type."""
    runtime = importlib.import_module("cyllama.llama.llama_cpp")
    path = source.with_name(f"own-{kind}-{importance is None}.gguf")
    parameters = runtime.LlamaModelQuantizeParams()
    parameters.ftype, parameters.allow_requantize = FILE_TYPES[kind], True
    parameters.pure = kind in _PURE  # of K-quants it could not give the other columns another type
    parameters.token_embedding_type = parameters.output_tensor_type = _FLOAT16
    listed = None if importance is None else importances(importance)
    if listed is not None:
        # cyllama shows the field and cannot set it.
        if ctypes.c_int.from_address(id(parameters) + _FILE_TYPE).value != FILE_TYPES[kind]:
            raise RuntimeError("this version of cyllama holds its parameters elsewhere")
        ctypes.c_void_p.from_address(id(parameters) + _IMPORTANCE).value = ctypes.addressof(listed)
    runtime.model_quantize(str(source), str(path), parameters)
    return path


def importance_file(folder: Path, calibration: Tensor) -> Path:
    """Write the importance matrix of what the float model reads."""
    model = float_model()
    prepared = prepare(model, GPTQConfig(show_progress=False), inplace=False)
    with torch.no_grad():
        for each in calibration:
            prepared(each[None])
    save_calibration(prepared, folder / "seen")
    write_imatrix(model, folder / "seen", folder / "importance.gguf")
    return folder / "importance.gguf"


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
    parser.add_argument("--kinds", nargs="+", choices=list(FILE_TYPES), default=list(FILE_TYPES))
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
        importance = importance_file(Path(name), given)
        for kind in options.kinds:
            out.row(f"{kind}, llama.cpp's own", *row(own_file(source, kind, None), test, expected))
            weighed = own_file(source, kind, importance)
            out.row(f"{kind}, its own with imatrix", *row(weighed, test, expected))
            out.row(f"{kind}, rounded to nearest", *row(our_file(Path(name), kind, None), test, expected))
            out.row(f"{kind}, GPTQ", *row(our_file(Path(name), kind, given), test, expected))


if __name__ == "__main__":
    main()
