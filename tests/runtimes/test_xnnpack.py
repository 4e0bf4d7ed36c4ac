"""`PT2EConfig.xnnpack()` on XNNPACK, by way of ExecuTorch."""

from __future__ import annotations

import importlib
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version

import pytest
import torch
from torch import Tensor

from runtime_models import MAKERS
from runtime_runs import Outcome, case
from tico_config import PT2EConfig

pytest.importorskip("executorch", reason="nox -s 'runtimes(xnnpack)' installs it")

STEPS = {
    # Sums in float32 here and in int32 there: a value half-way between two codes can go to either side.
    "upsampling CNN": 1,
}
# XNNPACK has no layer norm: the five of this model run outside, between the pieces that it takes.
DELEGATES = {"transformer encoder": 5}
OUTSIDE = {"transformer encoder": 5}


def lowered(program: torch.export.ExportedProgram) -> tuple[bytes, Counter[str]]:
    """Return a program for ExecuTorch, and how often its graph calls each operator, delegates among them."""
    partition = importlib.import_module("executorch.backends.xnnpack.partition.xnnpack_partitioner")
    configs = importlib.import_module("executorch.backends.xnnpack.utils.configs")
    edge = importlib.import_module("executorch.exir").to_edge_transform_and_lower(
        program,
        transform_passes=configs.get_transform_passes(),
        partitioner=[partition.XnnpackPartitioner()],
    )
    nodes = [node for node in edge.exported_program().graph.nodes if node.op == "call_function"]
    names = (str(getattr(node.target, "__name__", node.target)) for node in nodes)
    return edge.to_executorch().buffer, Counter(name for name in names if name != "getitem")


def run(program: bytes, x: Tensor) -> Tensor:
    """Return what the runtime makes of `x`."""
    runtime = importlib.import_module("executorch.runtime").Runtime.get()
    result: Tensor = runtime.load_program(program).load_method("forward").execute((x,))[0]
    return result


@pytest.mark.parametrize("name", MAKERS)
def test_xnnpack_computes_what_the_graph_computes(name: str, tell: Callable[[str, Outcome], None]) -> None:
    """In one delegate, but for norms, with the same codes."""
    made = case(name, PT2EConfig.xnnpack())
    program, calls = lowered(made.program)
    delegates = calls.pop("executorch_call_delegate", 0)
    outside = ", ".join(f"{count} {operator}" for operator, count in calls.items()) or "nothing"
    outcome = made.outcome(run(program, made.test), f"{delegates} delegate(s), outside: {outside}")
    tell(f"executorch {version('executorch')}", outcome)
    assert outcome.steps <= STEPS.get(name, 0)
    assert delegates == DELEGATES.get(name, 1)
    assert calls.total() == OUTSIDE.get(name, 0)
