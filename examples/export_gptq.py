"""A language model of 4-bit weights in the formats of GPTQ and AWQ, as transformers and vLLM load them.

python examples/export_gptq.py [FOLDER]
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tico.quantization import GPTQConfig, convert, prepare
from tico.quantization.config import profiles
from tico_export import AWQFormat, ExportResult, ExportTarget, GPTQFormat, export

TARGETS: dict[str, ExportTarget] = {"gptq": GPTQFormat(), "awq": AWQFormat()}
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def quantized() -> tuple[nn.Module, torch.Tensor]:
    """Return a model with integers in the linear layers of its blocks, and tokens."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(LlamaConfig.from_dict(SIZES))
        tokens = torch.randint(0, 128, (8, 32))
    model.eval()
    config = profiles.GPTQMODEL.config(GPTQConfig, bits=4, group_size=32, show_progress=False)
    prepared = prepare(model, config, args=(tokens,))
    with torch.no_grad():
        prepared(tokens)
    return convert(prepared), tokens


def write(name: str, folder: Path) -> ExportResult:
    """Write the model in a format; GPTQModel verifies it where it is installed."""
    model, tokens = quantized()
    return export(model, folder / name, TARGETS[name], args=(tokens,))


def main(folder: Path) -> None:
    """Write both folders and print what became of them."""
    for name in TARGETS:
        print(write(name, folder))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
