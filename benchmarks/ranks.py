"""What several processes of one thread each make of a conversion of a random LLaMA, and how fast.

python benchmarks/ranks.py                                          four layers, on 1 and 2 processes
python benchmarks/ranks.py --hidden 576 --layers 8 --counts 1 2 3

Each process runs its part of the data, then all convert. Seconds are those from the first batch to the end
of `convert`, CPU seconds those that the process itself took, of which some for its passes. Exchanges are
seconds in which processes tell each other what they have, waiting for the others included; MB are what a
process was told. The digests of the results are to be the same.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Final, Literal
from unittest import mock

import attrs
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import spawn
from transformers import LlamaConfig, LlamaForCausalLM

from recorded import add_option, recording
from tico.quantization import GPTQConfig, convert, prepare
from tico.quantization.config import BaseConfig
from tico_modules import model_fingerprint
from tico_quantizers.calibration import Ranks

MB: Final = 2**20


@attrs.frozen(kw_only=True)
class Task:
    """A random LLaMA, how it is quantized, and how much data there are."""

    hidden: int
    layers: int
    batches: int
    tokens: int
    weights: str

    @property
    def config(self) -> BaseConfig:
        """What is asked for."""
        weights: Literal["auto", "uniform"] = "auto" if self.weights == "auto" else "uniform"
        return GPTQConfig(group_size=64, token_weights=weights, show_progress=False)

    def model(self) -> nn.Module:
        """Return the model, always the same one."""
        torch.manual_seed(0)
        sizes = {"hidden_size": self.hidden, "intermediate_size": self.hidden * 8 // 192 * 64}
        heads = {"num_attention_heads": self.hidden // 64, "num_key_value_heads": self.hidden // 64}
        counts = {"num_hidden_layers": self.layers, "vocab_size": 1024}
        model: nn.Module = LlamaForCausalLM(LlamaConfig.from_dict({**sizes, **heads, **counts}))
        nn.Module.eval(model)
        return model

    def data(self) -> list[Tensor]:
        """Return the batches, of one text each."""
        made = torch.Generator().manual_seed(1)
        return [torch.randint(0, 1024, (1, self.tokens), generator=made) for _ in range(self.batches)]


class _Told:
    """Counts what the exchanges of this process take."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.bytes = 0
        self._heads, self._contents = Ranks._heads, Ranks._contents

    def watch(self) -> None:
        """Count from now on."""

        def heads(ranks: Ranks, own: list[int]) -> list[list[int]]:
            start = time.perf_counter()
            found = self._heads(ranks, own)
            self.seconds += time.perf_counter() - start
            return found

        def contents(ranks: Ranks, own: Tensor, sizes: Sequence[int]) -> list[Tensor]:
            start = time.perf_counter()
            found = self._contents(ranks, own, sizes)
            self.seconds += time.perf_counter() - start
            self.bytes += sum(sizes) - len(own)
            return found

        mock.patch.object(Ranks, "_heads", heads).start()
        mock.patch.object(Ranks, "_contents", contents).start()


def run_rank(rank: int, count: int, folder: str, task: Task) -> None:
    """Quantize the model together with the other ranks, and leave the figures in a file."""
    torch.set_num_threads(1)
    rendezvous, limit = f"file://{folder}/rendezvous", timedelta(minutes=10)
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=count, timeout=limit)
    model, batches = prepare(task.model(), task.config), task.data()
    own = batches[rank * len(batches) // count : (rank + 1) * len(batches) // count]
    told = _Told()
    told.watch()
    dist.barrier()
    start, cpu = time.perf_counter(), time.process_time()
    with torch.no_grad():
        for batch in own:
            model(batch)
    passes = time.process_time() - cpu
    model = convert(model, group=dist.group.WORLD)
    figures = {
        "seconds": time.perf_counter() - start,
        "cpu": time.process_time() - cpu,
        "passes": passes,
        "exchanges": told.seconds,
        "megabytes": told.bytes / MB,
        "digest": model_fingerprint(model)[:16],
    }
    (Path(folder) / f"{rank}.json").write_text(json.dumps(figures))
    dist.destroy_process_group()


def measured(count: int, task: Task) -> list[Mapping[str, object]]:
    """Return the figures of each of `count` processes."""
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_rank, (count, folder, task), nprocs=count)  # type: ignore[no-untyped-call]  # torch's
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(count)]


def main() -> None:
    """Print a line for each process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value in (("hidden", 512), ("layers", 4), ("batches", 16), ("tokens", 512)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--weights", choices=("auto", "uniform"), default="auto")
    parser.add_argument("--counts", type=int, nargs="+", default=[1, 2])
    add_option(parser)
    options = vars(parser.parse_args())
    counts: list[int] = options.pop("counts")
    result: Path = options.pop("result")
    task = Task(**options)
    with recording(result) as record:
        record.table(str(task), *_COLUMNS.values(), "digest", width=24)
        for count in counts:
            for rank, each in enumerate(measured(count, task)):
                shown = (f"{each[name]:.2f}" for name in _COLUMNS)
                record.row(f"{count} processes, rank {rank}", *shown, str(each["digest"]))


_COLUMNS: Final = {
    "seconds": "s",
    "cpu": "CPU s",
    "passes": "passes",
    "exchanges": "exchanges",
    "megabytes": "MB",
}

if __name__ == "__main__":
    main()
