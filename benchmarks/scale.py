"""The memory of `quantize_checkpoint`, and whether it leaves what the path in memory leaves.

python benchmarks/scale.py                         two depths of a random LLaMA in float32, four algorithms
python benchmarks/scale.py --layers 8 --only GPTQ
python benchmarks/scale.py --gigabytes 4           a random LLaMA in bfloat16, W4 in groups of 128
python benchmarks/scale.py --smollm2               SmolLM2 in memory, from folder to folder, on two processes
python benchmarks/scale.py --texts 32 128 512      two layers of SmolLM2, more and more texts of 2,048 tokens
python benchmarks/scale.py --shapes 8B 70B         a layer of each, measured, and the model, computed

Each row is a process of its own. Memory is the peak of what no file backs (``RssAnon``, which Linux alone
tells), in the first table above what the process had after it had quantized a model of two layers. Of two
processes it is that of the first. Disk is the peak of what open files without a name hold.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from typing import Final

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from process_memory import resident
from recorded import Recording, add_option, recording
from scale_layers import SHAPES, measure_layer
from scale_models import random_tokens, smollm2_tokens, write_random, write_smollm2
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    calibrate,
    convert,
    load_quantized,
    prepare,
    quantize_checkpoint,
    save_quantized,
)
from tico.quantization.config import BaseConfig
from tico_observers import tensor_digest

GPTQ: Final = GPTQConfig(group_size=128, show_progress=False)
SMOLLM2_GPTQ: Final = GPTQConfig(group_size=64, show_progress=False)  # 576 columns
CONFIGS: Final[Mapping[str, Sequence[BaseConfig]]] = {
    "GPTQ": (GPTQ,),
    "PTQ": (PTQConfig(),),
    "AWQ": (AWQConfig(group_size=128, show_progress=False),),
    "SmoothQuant, GPTQ, PTQ": (SmoothQuantConfig(), GPTQ, PTQConfig()),
}
WAYS: Final = ("in memory", "from folder to folder", "on two processes")
MB: Final = 2**20


@attrs.frozen
class Task:
    """What a large model is quantized with: so many texts of so many tokens, random ones or SmolLM2's."""

    texts: int
    length: int
    smollm2: bool

    @property
    def config(self) -> GPTQConfig:
        """What is asked for."""
        return SMOLLM2_GPTQ if self.smollm2 else GPTQ

    def batches(self) -> list[Tensor]:
        """Return the texts, each (1, length)."""
        made = smollm2_tokens if self.smollm2 else random_tokens
        return made(self.texts, self.length)

    def to_options(self) -> list[str]:
        """Return the options of this script that say it."""
        kind = "smollm2" if self.smollm2 else "random"
        return ["--data", kind, str(self.texts), str(self.length)]

    @classmethod
    def of_options(cls, kind: str, texts: str, length: str) -> Task:
        """Return what options say."""
        return cls(int(texts), int(length), kind == "smollm2")


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


def anonymous_bytes() -> int:
    """Return the memory of this process that no file backs."""
    return resident("RssAnon")


def nameless_bytes() -> int:
    """Return what the open files of this process hold on disk that have no name any more."""
    held = 0
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):  # closed since it was listed
            found = link.stat()
            held += found.st_blocks * 512 if stat.S_ISREG(found.st_mode) and not found.st_nlink else 0
    return held


@contextmanager
def peak(measured: Callable[[], int] = anonymous_bytes) -> Iterator[list[int]]:
    """Give a list that holds the largest number of bytes `measured` when the context ends."""
    seen, ended = [measured()], threading.Event()

    def watch() -> None:
        while not ended.wait(0.005):
            seen[0] = max(seen[0], measured())

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


def in_memory(source: Path, out: Path, configs: Sequence[BaseConfig], data: Sequence[Tensor]) -> None:
    """Quantize the model with all of it in memory."""
    model: nn.Module = AutoModelForCausalLM.from_pretrained(source)
    for config in configs:
        model = convert(calibrate(prepare(model, config), data))
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
        before, start = resident("RssAnon"), time.process_time()
        with peak() as most:
            quantize_checkpoint(folder / "source", folder / "out", configs, batches())
        seconds = time.process_time() - start
        in_memory(folder / "source", folder / "whole", configs, batches())
        size = sum(path.stat().st_size for path in (folder / "source").glob("*.safetensors"))
        same = digest(folder / "out") == digest(folder / "whole")
    print(json.dumps({"size": size, "memory": most[0] - before, "seconds": seconds, "same": same}))


def peak_resident() -> int:
    """Return the most bytes that this process has had in memory, with the pages of files."""
    found = re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())
    return int(found[1]) * 1024 if found else 0


def digest_of_codes(folder: Path) -> str:
    """Return a digest of all tensors of a quantized model."""
    content = hashlib.sha256()
    for name, tensor in sorted(load_quantized(folder).state_dict().items()):
        content.update(f"{name} {tensor_digest(tensor)}".encode())
    return content.hexdigest()


def quantize_part(rank: int, count: int, place: str, source: Path, out: Path, task: Task) -> None:
    """Quantize `source` with the other ranks, each on its part of the data; the first leaves its figures."""
    torch.set_num_threads(1)
    meeting, limit = f"file://{place}/meeting", timedelta(minutes=60)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count, timeout=limit)
    batches = task.batches()
    own = batches[rank * len(batches) // count : (rank + 1) * len(batches) // count]
    start = time.process_time()
    with peak() as most:
        quantize_checkpoint(source, out, task.config, own, group=dist.group.WORLD)
    figures = {"memory": most[0], "resident": peak_resident(), "seconds": time.process_time() - start}
    (Path(place) / f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def measure_large(way: str, source: Path, place: Path, task: Task) -> None:
    """Print the figures of quantizing `source` as JSON."""
    torch.set_num_threads(1)
    out = place / "out"
    if way == "on two processes":
        spawn(quantize_part, (2, str(place), source, out, task), nprocs=2)  # type: ignore[no-untyped-call]  # torch's
        found = json.loads((place / "0.json").read_text())
        print(json.dumps(found | {"disk": 0, "digest": digest_of_codes(out)}))
        return
    start = time.process_time()
    with peak() as most, peak(nameless_bytes) as disk:
        if way == "in memory":
            in_memory(source, out, (task.config,), task.batches())
        else:
            quantize_checkpoint(source, out, task.config, task.batches())
    seconds = time.process_time() - start
    figures = {"memory": most[0], "resident": peak_resident(), "disk": disk[0], "seconds": seconds}
    print(json.dumps(figures | {"digest": digest_of_codes(out)}))


def row_of(*arguments: str) -> dict[str, object]:
    """Return what this script prints as JSON with `arguments`."""
    command = [sys.executable, __file__, *arguments]
    found: dict[str, object] = json.loads(subprocess.check_output(command, stderr=subprocess.DEVNULL))
    return found


def print_large(record: Recording, title: str, folder: Path, size: int, rows: Mapping[str, Task]) -> None:
    """Print a table with a row for each way to quantize the model in `folder`, of `size` bytes."""
    record.table(title, "source", "memory", "resident", "disk", "CPU s", "codes", width=34)
    for name, task in rows.items():
        way = name if name in WAYS else WAYS[1]
        found = row_of("--large", way, "--source", str(folder), *task.to_options())
        figures = (f"{int(str(found[each])) / MB:.0f} MB" for each in ("memory", "resident", "disk"))
        seconds = f"{float(str(found['seconds'])):.0f}"
        record.row(name, f"{size / MB:.0f} MB", *figures, seconds, str(found["digest"])[:12])


def print_layers(record: Recording, names: Sequence[str], shrink: int, tokens: int) -> None:
    """Print what a layer of each shape takes, and what follows for the whole model."""
    columns = ("forward", "Gram", "solver", "layer", "Gram matrices", "hours, computed")
    record.table(f"one thread, GPTQ W4 g128, {tokens:,} tokens", *columns, width=12)
    for name in names:
        cost = measure_layer(SHAPES[name], shrink)
        record.row(
            name,
            f"{cost.forward * 1e3:.2f} ms",
            f"{cost.gram * 1e3:.2f} ms",
            f"{cost.solver:.0f} s",
            f"{cost.layer_bytes / MB:.0f} MB",
            f"{cost.gram_bytes / MB:.0f} MB",
            f"{cost.hours(SHAPES[name], tokens):.1f}",
        )
    record.note(
        "forward and Gram are a token's in one layer, the solver is all weights of a layer's, timed at one"
        f" {shrink}th of both sides, times {shrink**3}; hours are computed from these, not run:"
        " two forward passes, Gram matrices and solver, in all layers"
    )


def print_memory(record: Recording, names: Sequence[str], depths: Sequence[int]) -> None:
    """Print the memory of each of the algorithms called `names`, for models of some `depths`."""
    record.table("a LLaMA 256 wide, 4 x 64 tokens", "source", "memory", "share", "CPU s", "files", width=34)
    for name in names:
        for layers in depths:
            found = row_of("--row", name, "--layers", str(layers))
            size, memory = int(str(found["size"])), int(str(found["memory"]))
            record.row(
                f"{name}, {layers} layers",
                f"{size / MB:.0f} MB",
                f"{memory / MB:.1f} MB",
                f"{memory / size:.2f}",
                f"{float(str(found['seconds'])):.1f}",
                "equal" if found["same"] else "DIFFER",
            )


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, nargs="+", default=[8, 20])
    parser.add_argument("--only", choices=list(CONFIGS), nargs="+", default=list(CONFIGS))
    parser.add_argument("--row", choices=list(CONFIGS), help=argparse.SUPPRESS)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    add_option(parser)
    parser.add_argument("--gigabytes", type=float, help="the size of a random model in bfloat16")
    parser.add_argument("--tokens", type=int, default=512, help="of each of four texts, for --gigabytes")
    parser.add_argument("--smollm2", action="store_true", help="fetch and take SmolLM2-135M-Instruct")
    parser.add_argument("--shapes", choices=list(SHAPES), nargs="+", help="layers to measure")
    parser.add_argument("--shrink", type=int, default=4, help="what the solver's sides are divided by")
    parser.add_argument("--large", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--source", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--texts", type=int, nargs="+", help="of 2,048 tokens, for two layers of SmolLM2")
    parser.add_argument("--data", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write is not None:
        write(options.write, options.layers[0])
    elif options.row is not None:
        measure(options.row, options.layers[0])
    elif options.large is not None:
        with tempfile.TemporaryDirectory(dir=options.source.parent) as place:
            measure_large(options.large, options.source, Path(place), Task.of_options(*options.data))
    else:
        print_tables(options)


def print_tables(options: argparse.Namespace) -> None:
    """Print the tables that the command line asks for."""
    with recording(options.result) as record, tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "source"
        if options.shapes:
            torch.set_num_threads(1)
            print_layers(record, options.shapes, options.shrink, 128 * 2048)
        elif options.gigabytes is not None:
            size = write_random(folder, options.gigabytes)
            title = f"a random LLaMA in bfloat16, 4 x {options.tokens} tokens"
            print_large(record, title, folder, size, {WAYS[1]: Task(4, options.tokens, smollm2=False)})
        elif options.smollm2:
            size = write_smollm2(folder)
            whole = Task(16, 512, smollm2=True)
            print_large(record, "SmolLM2, 16 x 512 tokens", folder, size, dict.fromkeys(WAYS, whole))
        elif options.texts:
            size = write_smollm2(folder, layers=2)
            rows = {f"{count} x 2,048 tokens": Task(count, 2048, smollm2=True) for count in options.texts}
            print_large(record, "two layers of SmolLM2, from folder to folder", folder, size, rows)
        else:
            print_memory(record, options.only, options.layers)


if __name__ == "__main__":
    main()
