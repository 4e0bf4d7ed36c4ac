"""What it costs to watch tensors: against a forward pass, against reading them once, and for Gram matrices.

Run with ``python benchmarks/observers.py``. Every figure is the median of rounds in which the candidates take
turns.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from recorded import Recording, add_option, recording
from tico_config import PerChannel
from tico_observers import (
    AbsMaxStatistic,
    EMAObserver,
    EMAStatistic,
    ExactGramStatistic,
    GramStatistic,
    HistogramObserver,
    HistogramStatistic,
    IdentityStatistic,
    MinMaxObserver,
    RangeStatistic,
)

HIDDEN: Final = 1024
INTERMEDIATE: Final = 2816
HEADS: Final = 16
TOKENS: Final = 512

Watch = Callable[[Tensor], object]


class DecoderLayer(nn.Module):
    """A decoder layer of the shape of LLaMA's: attention and a gated MLP, each behind a norm."""

    def __init__(self) -> None:
        """Make all weights at random."""
        super().__init__()
        widths = dict.fromkeys(("q_proj", "k_proj", "v_proj", "o_proj"), (HIDDEN, HIDDEN))
        widths |= {"gate_proj": (HIDDEN, INTERMEDIATE), "up_proj": (HIDDEN, INTERMEDIATE)}
        widths |= {"down_proj": (INTERMEDIATE, HIDDEN)}
        self.linears = nn.ModuleDict({name: nn.Linear(*pair, bias=False) for name, pair in widths.items()})
        self.norms = nn.ModuleList([nn.RMSNorm(HIDDEN), nn.RMSNorm(HIDDEN)])

    def forward(self, x: Tensor) -> Tensor:
        """Return the hidden states (tokens, hidden) after the layer."""
        x = x + self._attention(self.norms[0](x))
        y: Tensor = self.norms[1](x)
        gated = functional.silu(self._linear("gate_proj", y)) * self._linear("up_proj", y)
        return x + self._linear("down_proj", gated)

    def _attention(self, x: Tensor) -> Tensor:
        query, key, value = (
            self._linear(name, x).view(TOKENS, HEADS, -1).transpose(0, 1)
            for name in ("q_proj", "k_proj", "v_proj")
        )
        mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return self._linear("o_proj", mixed.transpose(0, 1).reshape(TOKENS, HIDDEN))

    def _linear(self, name: str, x: Tensor) -> Tensor:
        y: Tensor = self.linears[name](x)
        return y


@contextmanager
def watched(layer: DecoderLayer, make: Callable[[], Watch] | None) -> Iterator[None]:
    """Let a watcher of its own see each input and each output of every linear layer."""
    hooks = []
    watches = [(linear, make(), make()) for linear in layer.linears.values()] if make else []
    for linear, before, after in watches:
        hooks.append(linear.register_forward_pre_hook(_before(before)))
        hooks.append(linear.register_forward_hook(_after(after)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _before(watch: Watch) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        del module
        watch(args[0])

    return hook


def _after(watch: Watch) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
    def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        del module, args
        watch(output)

    return hook


def timed(candidates: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the seconds that each candidate takes in each round; in a round they take turns."""
    for candidate in candidates.values():
        candidate()
    taken: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, candidate in candidates.items():
            start = time.perf_counter()
            candidate()
            taken[name].append(time.perf_counter() - start)
    return taken


def ratios(taken: Mapping[str, list[float]], base: str) -> dict[str, float]:
    """Return the median over rounds of each candidate's time over that of `base` in the same round."""
    return {
        name: statistics.median(each / whole for each, whole in zip(times, taken[base], strict=True))
        for name, times in taken.items()
    }


def observers_of(package: str, where: str) -> dict[str, Callable[[], Watch]]:
    """Return the observers of another package, where it is installed."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            module = importlib.import_module(where)
    except ImportError:
        print(f"{package} is not installed: left out")
        return {}
    kinds = ("MinMaxObserver", "HistogramObserver")
    return {f"{package} {kind}": getattr(module, kind) for kind in kinds}


def forward_costs(rounds: int, record: Recording) -> None:
    """Print what watching all linear inputs and outputs adds to a forward pass."""
    layer, x = DecoderLayer().eval(), torch.randn(TOKENS, HIDDEN)
    makers: dict[str, Callable[[], Watch] | None] = {
        "nothing": None,
        "MinMaxObserver": lambda: MinMaxObserver().collect,
        "EMAObserver": lambda: EMAObserver().collect,
        "HistogramObserver": lambda: HistogramObserver().collect,
        **observers_of("torch.ao", "torch.ao.quantization.observer"),
        **observers_of("torchao", "torchao.quantization.pt2e.observer"),
    }

    def forward(make: Callable[[], Watch] | None) -> Callable[[], object]:
        def run() -> None:
            with watched(layer, make), warnings.catch_warnings():
                warnings.simplefilter("ignore")
                layer(x)

        return run

    taken = timed({name: forward(make) for name, make in makers.items()}, rounds)
    base = statistics.median(taken["nothing"])
    title = f"forward of a decoder layer, hidden {HIDDEN}, {TOKENS} tokens: {base * 1e3:.1f} ms"
    record.table(title, "watched", width=28)
    for name, ratio in ratios(taken, "nothing").items():
        record.row(name, f"{(ratio - 1) * 100:+.1f} %")


def reading_costs(rounds: int, record: Recording) -> None:
    """Print what each statistic costs relative to reading the tensor once."""
    x = torch.randn(4096, HIDDEN)
    maximum = x.abs().amax(0)
    channels = PerChannel(axis=1)
    candidates: dict[str, Callable[[], object]] = {
        "reading once (sum)": x.sum,
        "IdentityStatistic": lambda: IdentityStatistic().observe(x),
        "RangeStatistic": lambda: RangeStatistic().observe(x),
        "RangeStatistic per channel": lambda: RangeStatistic(granularity=channels).observe(x),
        "EMAStatistic": lambda: EMAStatistic(momentum=0.9).observe(x),
        "AbsMaxStatistic per channel": lambda: AbsMaxStatistic().observe(x),
        "HistogramStatistic": lambda: HistogramStatistic().observe(x),
        "HistogramStatistic per channel": lambda: HistogramStatistic(granularity=channels).observe(x),
        "GramStatistic": lambda: GramStatistic(columns=HIDDEN).observe_in_place(x),
        "ExactGramStatistic": lambda: ExactGramStatistic(maximum=maximum).observe_in_place(x),
    }
    taken = timed(candidates, rounds)
    base = statistics.median(taken["reading once (sum)"])
    title = f"one float32 tensor of 4096 x {HIDDEN}, read once in {base * 1e3:.2f} ms"
    record.table(title, "/ reading", width=32)
    for name, ratio in ratios(taken, "reading once (sum)").items():
        record.row(name, f"{ratio:.1f}")


def gram_in_chunks(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the Gram matrix as products over 512 rows in `dtype`, summed in float64."""
    total = x.new_zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for start in range(0, len(x), 512):
        rows = x[start : start + 512].to(dtype)
        total += (rows.T @ rows).double()
    return total


def gram_costs(rounds: int, columns: int, tokens: int, record: Recording) -> None:
    """Print cost and error of the candidates for a Gram matrix."""
    mixed = torch.randn(columns, columns) / columns**0.5
    x = torch.randn(tokens, columns) @ mixed
    maximum = x.abs().amax(0)
    seen = GramStatistic(columns=columns).observe(x)
    candidates: dict[str, Callable[[], Tensor]] = {
        "float32, one product": lambda: x.T @ x,
        "bfloat16, one product": lambda: x.bfloat16().T @ x.bfloat16(),
        "float64, one product": lambda: x.double().T @ x.double(),
        "float64, chunks of 512": lambda: gram_in_chunks(x, torch.float64),
        "float32, chunks of 512": lambda: gram_in_chunks(x, torch.float32),
        "GramStatistic": lambda: GramStatistic(columns=columns).observe_in_place(x).matrix(),
        "  of that, matrix()": seen.matrix,
        "ExactGramStatistic": lambda: ExactGramStatistic(maximum=maximum).observe_in_place(x).matrix(),
    }
    taken = ratios(timed(candidates, rounds), "float32, one product")
    exact = candidates["float64, one product"]()
    title = f"Gram matrix of {tokens} x {columns}: time over the first, largest error over the largest entry"
    record.table(title, "time", "error", width=32)
    for name, candidate in candidates.items():
        error = float((candidate().double() - exact).abs().max() / exact.abs().max())
        record.row(name, f"{taken[name]:.2f}", f"{error:.1e}")


def main() -> None:
    """Print all figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--threads", type=int, default=2)
    add_option(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    print(f"torch {torch.__version__}, threads: {arguments.threads}")
    with recording(arguments.result) as record, torch.no_grad():
        forward_costs(arguments.rounds, record)
        reading_costs(arguments.rounds, record)
        gram_costs(max(arguments.rounds // 3, 1), arguments.columns, arguments.tokens, record)


if __name__ == "__main__":
    main()
