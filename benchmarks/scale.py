"""The memory of `quantize_checkpoint`, and whether it leaves what the path in memory leaves.

python benchmarks/scale.py                         two depths of a random LLaMA in float32, four algorithms
python benchmarks/scale.py --layers 8 --only GPTQ

Each row is a process of its own. Memory is the peak of what no file backs (``RssAnon``, which Linux alone
tells), above what the process had after it had quantized a model of two layers.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from recorded import add_option, recording
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
    quantize_checkpoint,
    save_quantized,
)
from tico.quantization.config import BaseConfig

GPTQ: Final = GPTQConfig(group_size=128, show_progress=False)
CONFIGS: Final[Mapping[str, Sequence[BaseConfig]]] = {
    "GPTQ": (GPTQ,),
    "PTQ": (PTQConfig(),),
    "AWQ": (AWQConfig(group_size=128, show_progress=False),),
    "SmoothQuant, GPTQ, PTQ": (SmoothQuantConfig(), GPTQ, PTQConfig()),
}
MB: Final = 2**20


def batches() -> list[Tensor]:
    """Return four texts of 64 tokens."""
    chance = torch.Generator().manual_seed(0)
    return [torch.randint(0, 100, (1, 64), generator=chance) for _ in range(4)]


def write(folder: Path, layers: int) -> int:
    """Write a random LLaMA in shards; return the bytes of its files."""
    config = LlamaConfig(
        vocab_size=100,
        hidden_size=256,
        intermediate_size=768,
        num_attention_heads=4,
        num_hidden_layers=layers,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder, max_shard_size="8MB")
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def anonymous() -> int:
    """Return the bytes of this process that no file backs."""
    found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


@contextmanager
def peak() -> Iterator[list[int]]:
    """Give a list that holds the largest `anonymous` when the context ends."""
    seen, ended = [anonymous()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen[0] = max(seen[0], anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    try:
        yield seen
    finally:
        ended.set()
        watching.join()


def digest(folder: Path) -> str:
    """Return a digest of all files of a folder."""
    content = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        content.update(path.name.encode() + path.read_bytes())
    return content.hexdigest()


def in_memory(source: Path, out: Path, configs: Sequence[BaseConfig]) -> None:
    """Quantize the model with all of it in memory."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(source)
    for config in configs:
        model = prepare(model, config)
        with torch.no_grad():
            for batch in batches():
                model(batch)
        model = convert(model)
    save_quantized(model, out)


def measure(name: str, layers: int) -> None:
    """Print the figures of one row as JSON."""
    torch.set_num_threads(1)
    configs = CONFIGS[name]
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write(folder / "small", 2)
        quantize_checkpoint(folder / "small", folder / "warm", configs, batches())
        command = [sys.executable, __file__, "--write", str(folder / "source"), "--layers", str(layers)]
        subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
        before, start = anonymous(), time.process_time()
        with peak() as most:
            quantize_checkpoint(folder / "source", folder / "out", configs, batches())
        seconds = time.process_time() - start
        in_memory(folder / "source", folder / "whole", configs)
        size = sum(path.stat().st_size for path in (folder / "source").glob("*.safetensors"))
        same = digest(folder / "out") == digest(folder / "whole")
    print(json.dumps({"size": size, "memory": most[0] - before, "seconds": seconds, "same": same}))


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--only", choices=list(CONFIGS), nargs="+", default=list(CONFIGS))
    parser.add_argument("--row", choices=list(CONFIGS), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    add_option(parser)
    options = parser.parse_args()
    if options.write is not None:
        write(options.write, options.layers[0])
    elif options.row is not None:
        measure(options.row, options.layers[0])
    else:
        with recording(options.result) as record:
            columns = ("source", "memory", "share", "CPU s", "files")
            record.table("a LLaMA 256 wide, 4 x 64 tokens", *columns, width=34)
            for name in options.only:
                for layers in options.layers:
                    command = [sys.executable, __file__, "--row", name, "--layers", str(layers)]
                    found = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
                    record.row(
                        f"{name}, {layers} layers",
                        f"{found['size'] / MB:.0f} MB",
                        f"{found['memory'] / MB:.1f} MB",
                        f"{found['memory'] / found['size']:.2f}",
                        f"{found['seconds']:.1f}",
                        "equal" if found["same"] else "DIFFER",
                    )


if __name__ == "__main__":
    main()
