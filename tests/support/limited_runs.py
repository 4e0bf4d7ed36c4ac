"""`quantize_checkpoint` in a process whose memory is limited to a third of the model's bytes.

python limited_runs.py SMALL SOURCE OUT: SMALL is quantized first, without a limit, so that the interpreter
has all that it needs. In the end SOURCE is loaded as a whole, which has to fail.
"""

from __future__ import annotations

import re
import resource
import sys
import threading
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from tico.quantization import GPTQConfig, PTQConfig, SmoothQuantConfig, quantize_checkpoint

CONFIGS = (SmoothQuantConfig(), GPTQConfig(group_size=32, show_progress=False), PTQConfig())
BATCHES = [torch.arange(32).view(2, 16) * 5 % 40]


def data_bytes() -> int:
    """Return the bytes of what the limit is about: the heap, and private pages that can be written to."""
    found = re.search(r"VmData:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def main() -> None:
    """Quantize, or fail."""
    small, source, out = map(Path, sys.argv[1:4])
    torch.set_num_threads(1)
    # Progress bars of other libraries start threads: their stacks, of 8 MiB each, are not what is limited.
    threading.stack_size(2**18)
    quantize_checkpoint(small, out.with_name("warm"), CONFIGS, BATCHES)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    most = data_bytes() + size // 3
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    quantize_checkpoint(source, out, CONFIGS, BATCHES)
    try:
        AutoModelForCausalLM.from_pretrained(source)
    except (MemoryError, RuntimeError):
        return
    sys.exit("the limit keeps nothing out")


if __name__ == "__main__":
    main()
