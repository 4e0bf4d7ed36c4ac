"""A trained LLaMA with 4-bit weights as a file of llama.cpp, with its tokenizer.

python examples/export_gguf.py [FOLDER]

llama.cpp verifies the file where it is installed: pip install 'tico-export[gguf]'
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import torch
from transformers import AutoTokenizer, LlamaForCausalLM

from tico.quantization import GPTQConfig, convert, prepare
from tico_export import GGUF, ExportResult, export

MODEL = Path(__file__).parent / "wiki_llama"


def write(folder: Path) -> ExportResult:
    """Quantize the model in groups of 32 columns, the blocks of llama.cpp, and write it."""
    model = LlamaForCausalLM.from_pretrained(MODEL)
    text = (MODEL / "calibration.txt").read_text(encoding="utf-8")
    tokens: torch.Tensor = AutoTokenizer.from_pretrained(MODEL)(text[:4_000], return_tensors="pt").input_ids
    batches = tokens[:, : tokens.shape[1] // 256 * 256].view(-1, 256)

    prepared = prepare(model, GPTQConfig(bits=4, group_size=32, symmetric=True, show_progress=False))
    with torch.no_grad():
        prepared(batches)
    target = GGUF(name="wiki LLaMA")
    return export(convert(prepared), folder / "wiki_llama.gguf", target, args=(batches[:1],))


def main(folder: Path) -> None:
    """Write the file, and print what llama.cpp made of it and what has to be known of it."""
    result = write(folder)
    print(result, *result.notes, sep="\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(tempfile.mkdtemp()))
