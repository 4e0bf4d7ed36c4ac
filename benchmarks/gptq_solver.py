"""What the GPTQ solver costs on one thread, next to the peers that can be imported and to its products alone.

Run with ``python benchmarks/gptq_solver.py 1024 2048 --peer-path DIR``: peers are looked for on the path of
modules and in each DIR, for example the folder that a wheel of theirs was unpacked to. All candidates take
turns in one process; figures are medians of CPU seconds. Two codes are called equal where the values that
they stand for are within a quarter step of each other.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Final

import attrs
import torch
from torch import Tensor, nn

from recorded import Recording, add_option, recording
from tico_config import GPTQConfig, HessianMSESpec, MinMaxSpec, MSESpec, PercentileSpec
from tico_quantizers.algorithms.gptq import Solution, nearest, solve

DAMPING: Final = 0.01


@attrs.frozen(kw_only=True, eq=False)
class Task:
    """One weight (rows, columns) to be quantized, and the Gram matrix of its inputs, in float32."""

    weight: Tensor
    gram: Tensor
    bits: int
    group_size: int
    act_order: bool


Solve = Callable[[], Tensor | Solution]
"""What is timed: returns the values that the codes stand for (rows, columns), or the solution."""

Prepare = Callable[[Task], Solve]
"""Copies what a solver consumes, untimed."""


def config_of(task: Task) -> GPTQConfig:
    """Return what is asked for, as a config: with the grids of the paper, as the peers have them."""
    groups = None if task.group_size == len(task.gram) else task.group_size
    paper = GPTQConfig(static_groups=False, observer=MinMaxSpec(), damping=DAMPING)
    return attrs.evolve(paper, bits=task.bits, group_size=groups, act_order=task.act_order)


def ours(task: Task) -> Solve:
    """Return the solver of this project."""
    return lambda: solve(task.weight, task.gram, config_of(task))


def two_rows(task: Task) -> Solve:
    """Return the solver on two rows, which costs the factorization in float64 and what is once a column."""
    return lambda: solve(task.weight[:2], task.gram, config_of(task))


def with_fields(change: Callable[[GPTQConfig], GPTQConfig]) -> Prepare:
    """Return the solver of this project with some fields of its config changed."""
    return lambda task: lambda: solve(task.weight, task.gram, change(config_of(task)))


VARIANTS: Final[Mapping[str, Prepare]] = {
    "static groups": with_fields(lambda config: attrs.evolve(config, static_groups=True)),
    "  and act_order": with_fields(lambda config: attrs.evolve(config, static_groups=True, act_order=True)),
    "percentile 1, 99": with_fields(lambda config: attrs.evolve(config, observer=PercentileSpec(1, 99))),
    "MSE": with_fields(lambda config: attrs.evolve(config, observer=MSESpec())),
    "MSE, 50 steps": with_fields(lambda config: attrs.evolve(config, observer=MSESpec(50))),
    "Hessian MSE": with_fields(lambda config: attrs.evolve(config, observer=HessianMSESpec())),
    "asymmetric": lambda task: (
        lambda: solve(task.weight, task.gram, config_of(task), cross_gram=task.gram / 100)
    ),
    "nearest": lambda task: lambda: nearest(task.weight, config_of(task)),
    "two rows only": two_rows,
}
"""Other ways to use the solver of this project."""


def floor(task: Task) -> Solve:
    """Return products of as many operations as the solver needs: float32 feedback, float64 factorization."""
    size = len(task.gram)
    single, double = task.gram, task.gram.double()

    def multiply() -> Tensor:
        torch.mm(double[: size // 6], double)
        return torch.mm(single[: size // 2], task.weight.T).T

    return multiply


def tico(task: Task) -> Solve:
    """Return the solver of Samsung's tico."""
    module = solver_module("tico.quantization.algorithm.gptq.gptq")
    linear = linear_with(task.weight)
    solver = module.GPTQ(linear)
    solver.quantizer.configure(task.bits, perchannel=True, sym=False)
    solver.H = task.gram.clone()

    def solve() -> Tensor:
        solver.fasterquant(percdamp=DAMPING, groupsize=task.group_size, actorder=task.act_order)
        return linear.weight.detach()

    return solve


def llm_compressor(task: Task) -> Solve:
    """Return the solver of llm-compressor; it is given the grids, which are those of the original weight."""
    module = solver_module("llmcompressor.modifiers.gptq.gptq_quantize")
    scale, lowest = static_grid(task)
    # Its codes are signed. Its weight order keeps the groups of neighbours, so it is another algorithm.
    arguments = module.QuantizationArgs(
        num_bits=task.bits,
        symmetric=False,
        strategy="group",
        group_size=task.group_size,
        actorder="weight" if task.act_order else None,
    )
    zero_point = (-(2 ** (task.bits - 1)) - (lowest / scale).round()).to(torch.int8)
    inputs = [x.clone()[None] for x in (task.weight, task.gram, scale, zero_point)]

    def solve() -> Tensor:
        values: Tensor = module.quantize_weight(*inputs, None, arguments, percdamp=DAMPING)[0]
        return values[0]

    return solve


def gptq_model(task: Task) -> Solve:
    """Return the solver of GPTQModel."""
    module = importlib.import_module("gptqmodel.quantization.gptq")
    config = module.QuantizeConfig(
        bits=task.bits,
        group_size=task.group_size,
        sym=False,
        desc_act=task.act_order,
        act_group_aware=False,
        damp_percent=DAMPING,
        offload_to_disk=False,
    )
    solver = module.GPTQ(linear_with(task.weight), config)
    solver.quantizer.configure(perchannel=True)
    solver.H, solver.nsamples, solver.fallback = task.gram.clone(), 1, None
    solver.finalize_hessian = lambda target_device: solver.H

    def solve() -> Tensor:
        values: Tensor = solver.quantize()[0]
        return values

    return solve


PEERS: Final[Mapping[str, Prepare]] = {
    "tico": tico,
    "llm-compressor": llm_compressor,
    "GPTQModel": gptq_model,
}


def solver_module(name: str) -> ModuleType:
    """Import one module of a peer without running the ``__init__`` of the packages around it.

    These import the whole library; and that of tico would take the name that this project's facade has.
    """
    parts = name.split(".")
    for depth in range(1, len(parts)):
        package = ModuleType(".".join(parts[:depth]))
        folders = [Path(folder, *parts[:depth]) for folder in sys.path]
        package.__path__ = [str(folder) for folder in folders if folder.is_dir()]
        sys.modules.setdefault(package.__name__, package)
    return importlib.import_module(name)


def linear_with(weight: Tensor) -> nn.Linear:
    """Return a linear layer that holds a copy of `weight`."""
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    linear.weight = nn.Parameter(weight.clone(), requires_grad=False)
    return linear


def static_grid(task: Task) -> tuple[Tensor, Tensor]:
    """Return scale and lowest value (rows, groups) of the groups of the original weight."""
    groups = task.weight.view(len(task.weight), -1, task.group_size)
    low, high = groups.amin(2).clamp(max=0), groups.amax(2).clamp(min=0)
    return (high - low) / (2**task.bits - 1), low


def reference(task: Task) -> tuple[Tensor, Tensor]:
    """Return values and steps (rows, columns) of algorithm 1 of arXiv 2210.17323, float64, without blocks."""
    order = torch.arange(len(task.gram))
    if task.act_order:
        order = torch.argsort(task.gram.diagonal(), descending=True, stable=True)
    work, gram = task.weight[:, order].double(), task.gram[order][:, order].double()
    gram.diagonal().add_(DAMPING * gram.diagonal().mean())
    factor: Tensor = torch.linalg.cholesky(torch.linalg.inv(gram), upper=True)
    values, steps = torch.zeros_like(work), torch.zeros_like(work)
    for column in range(len(gram)):
        if column % task.group_size == 0:
            group = work[:, column : column + task.group_size]
            low, high = group.amin(1).clamp(max=0), group.amax(1).clamp(min=0)
            scale = ((high - low) / (2**task.bits - 1)).float().double()
            lowest = (low / scale).round()
        code = (work[:, column] / scale).round().clamp(lowest, lowest + 2**task.bits - 1)
        values[:, column], steps[:, column] = code * scale, scale
        error = (work[:, column] - values[:, column]) / factor[column, column]
        work[:, column + 1 :] -= error[:, None] * factor[column, column + 1 :]
    back = torch.argsort(order)
    return values[:, back], steps[:, back]


def loss(task: Task, values: Tensor) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ)."""
    error = task.weight.double() - values.double()
    return float((error @ task.gram.double() * error).sum())


def task_of(size: int, arguments: argparse.Namespace) -> Task:
    """Return a square weight of normal numbers and the Gram matrix of inputs that depend on each other."""
    random = torch.Generator().manual_seed(size)
    mixing = torch.randn(size, size, generator=random) / size**0.5 + torch.eye(size)
    inputs = torch.randn(2 * size, size, generator=random) @ mixing
    return Task(
        weight=torch.randn(size, size, generator=random),
        gram=inputs.T @ inputs,
        bits=arguments.bits,
        group_size=arguments.group_size or size,
        act_order=arguments.act_order,
    )


def importable(peers: Mapping[str, Prepare], task: Task) -> dict[str, Prepare]:
    """Return the peers that can be prepared here, and say why the others cannot."""
    found: dict[str, Prepare] = {}
    for name, prepare in peers.items():
        try:
            prepare(task)
        except (ImportError, AttributeError) as error:
            print(f"{name} left out: {str(error).splitlines()[0]}")
        else:
            found[name] = prepare
    return found


@attrs.frozen
class Measured:
    """The median of the CPU seconds, and the values of the last round."""

    seconds: float
    values: Tensor


def measure(solvers: Mapping[str, Prepare], task: Task, rounds: int) -> dict[str, Measured]:
    """Return what each solver needs; all take turns, and the first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in solvers}
    results: dict[str, Tensor | Solution] = {}
    for _ in range(rounds + 1):
        for name, prepare in solvers.items():
            solve = prepare(task)
            start = time.process_time()
            results[name] = solve()
            seconds[name].append(time.process_time() - start)
    return {
        name: Measured(statistics.median(seconds[name][1:]), values_of(results[name])) for name in solvers
    }


def values_of(result: Tensor | Solution) -> Tensor:
    """Return the values (rows, columns) that the codes stand for."""
    return result.dequantize() if isinstance(result, Solution) else result


def report(task: Task, measured: Mapping[str, Measured], record: Recording, *, with_reference: bool) -> None:
    """Print one line for each solver."""
    exact, steps = reference(task) if with_reference else (measured["ours"].values, torch.zeros(()))
    wanted, base = loss(task, exact), measured["ours"].seconds
    against = "reference" if with_reference else "ours"
    title = f"{task.weight.shape[1]} x {task.weight.shape[0]}, loss and codes relative to {against}"
    record.table(title, "CPU s", "/ ours", "loss", "equal codes", width=16)
    for name, result in measured.items():
        cells = [f"{result.seconds:.4f}", f"{result.seconds / base:.2f}"]
        if name != "floor":
            cells.append(f"{loss(task, result.values) / wanted:.6f}")
        if name != "floor" and with_reference:
            cells.append(f"{float(((result.values - exact).abs() < steps / 4).double().mean()):.5f}")
        record.row(name, *cells)


def report_variants(task: Task, rounds: int, record: Recording) -> None:
    """Print a line for each other way to use the solver of this project."""
    measured = measure({"ours": ours} | dict(VARIANTS), task, rounds)
    wanted, base = loss(task, measured["ours"].values), measured["ours"].seconds
    title = f"{task.weight.shape[1]} x {task.weight.shape[0]}, relative to the first line"
    record.table(title, "CPU s", "ratio", "loss", width=18)
    for name, result in measured.items():
        whole = result.values.shape == task.weight.shape
        losses = [f"{loss(task, result.values) / wanted:.6f}"] if whole else []
        record.row(name, f"{result.seconds:.4f}", f"{result.seconds / base:.2f}", *losses)


def main(argv: Sequence[str] | None = None) -> None:
    """Measure each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("sizes", type=int, nargs="*", default=[1024, 2048])
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group-size", type=int, default=128, help="0 for one grid a row")
    parser.add_argument("--act-order", action="store_true")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--peer-path", action="append", default=[], help="a folder to look for peers in")
    parser.add_argument("--reference-up-to", type=int, default=1024)
    parser.add_argument("--variants", action="store_true", help="other grids and orders, and no peers")
    add_option(parser)
    arguments = parser.parse_args(argv)
    sys.path += arguments.peer_path
    peers = {} if arguments.variants else PEERS
    solvers = {"ours": ours} | importable(peers, task_of(128, arguments)) | {"floor": floor}
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, one thread, {arguments.bits} bits, {arguments.rounds} rounds")
    with recording(arguments.result) as record:
        for size in arguments.sizes:
            task = task_of(size, arguments)
            if arguments.variants:
                report_variants(task, arguments.rounds, record)
                continue
            measured = measure(solvers, task, arguments.rounds)
            report(task, measured, record, with_reference=size <= arguments.reference_up_to)


if __name__ == "__main__":
    main()
