"""What the runtime of a preset computes, next to the graph that it was given."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import attrs
import torch
from torch import Tensor, fx

from runtime_models import Task, task
from tico_config import DType, PT2EConfig, affine
from tico_modules import Edit
from tico_pt2e import PT2EQuantizer, QuantGraph
from tico_quantizers import Example

# Without it, sums of two products of 8 bits overflow 16 bits on x86, and with weights of 7 bits they do not.
_ABOUT: Final = Path("/proc/cpuinfo")
HAS_VNNI: Final = not _ABOUT.exists() or "vnni" in _ABOUT.read_text(encoding="utf-8")


def exact(preset: PT2EConfig) -> PT2EConfig:
    """Return a preset with weights whose sums this processor has room for."""
    return preset if HAS_VNNI else attrs.evolve(preset, weight=affine(DType.int(7)))


@attrs.frozen(eq=False)
class Case:
    """A quantized model, its exported program, and what it and the float model make of the test batch."""

    name: str
    test: Tensor
    graph: QuantGraph
    program: torch.export.ExportedProgram
    expected: Tensor
    in_float: Tensor

    def outcome(self, found: Tensor, share: str = "") -> Outcome:
        """Return how far the runtime's result `found` is from the graph's; `share` says what it runs."""
        _, scale, *_ = grids(self.graph.graph)[-1].args
        assert isinstance(scale, float)
        steps = float(((found - self.expected) / scale).abs().max())
        own, lost = decibels(self.in_float, self.expected), decibels(self.in_float, found)
        return Outcome(self.name, round(steps), own, lost, share)


@attrs.frozen
class Outcome:
    """A line of the table: the largest difference in steps of the last grid, and decibels against float."""

    name: str
    steps: int
    graph: float
    runtime: float
    share: str

    def __str__(self) -> str:
        """Return the cells of the line."""
        return f"{self.name} | {self.steps} | {self.graph:.1f} | {self.runtime:.1f} | {self.share}"


def save_as_onnx(made: Case, path: Path) -> None:
    """Write the exported program to `path` as an ONNX file."""
    program = torch.onnx.export(made.program, dynamo=True, verbose=False)
    if program is None:
        raise TypeError(path)
    program.save(path)


def decibels(signal: Tensor, other: Tensor) -> float:
    """Return the ratio of `signal` to its difference from `other`."""
    noise = (signal - other).double().square().sum()
    return float(10 * torch.log10(signal.double().square().sum() / noise))


def grids(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes that quantize values, in their order."""
    return [node for node in graph.nodes if "::quantize_per_tensor" in _schema(node)]


def _schema(node: fx.Node) -> str:
    return str(getattr(node.target, "_schema", ""))


def case(name: str, config: PT2EConfig) -> Case:
    """Return the model called `name`, quantized as `config` says."""
    given = task(name)
    with torch.no_grad():
        graph = _quantized(given, config)
        expected, in_float = graph(given.test), given.model(given.test)
    program = torch.export.export(graph, (given.test,))
    return Case(name, given.test, graph, program, expected, in_float)


def _quantized(given: Task, config: PT2EConfig) -> QuantGraph:
    with Edit() as edit:
        graph, prepared = PT2EQuantizer(config).start(given.model, Example(args=given.batches[:1]), edit)
    for batch in given.batches:
        graph(batch)
    with Edit() as edit:
        converted = prepared.convert(graph, edit)
    assert isinstance(converted, QuantGraph)
    return converted
