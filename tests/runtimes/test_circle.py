"""`PT2EConfig.circle()` through Samsung's converter, run by the reference runtime that comes with it."""

from __future__ import annotations

import importlib
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime_models import MAKERS
from runtime_runs import Case, Outcome, case, grids
from tico_config import PT2EConfig
from tico_pt2e import QuantGraph

pytest.importorskip("circle_schema", reason="nox -s 'runtimes(circle)' installs it")

# A softmax of its own moves values near the middle of two codes.
STEPS = {"attention": 1}


def converted(made: Case, folder: Path) -> bytes:
    """Return the Circle file that ``pt2-to-circle`` makes of a saved program."""
    source, target = folder / "model.pt2", folder / "model.circle"
    torch.export.save(made.program, source)
    program = Path(sys.executable).with_name("pt2-to-circle")
    subprocess.run([program, "-i", source, "-o", target], check=True, capture_output=True)
    return target.read_bytes()


def run(binary: bytes, x: Tensor) -> Tensor:
    """Return what the file makes of `x`, on the dequantized values of every integer in it."""
    runtime = importlib.import_module("tico.circle.runtime")
    mode = runtime.ExecutionMode.FAKE_QUANTIZE
    return torch.from_numpy(runtime.CircleReferenceRuntime(binary).run([x], mode=mode).outputs[0])


def on_first_grid(graph: QuantGraph, x: Tensor) -> Tensor:
    """Return `x` on the grid of the graph's input, which is the format of the file's."""
    _, scale, zero_point, low, high, _ = grids(graph.graph)[0].args
    assert isinstance(scale, float)
    assert isinstance(zero_point, int)
    assert isinstance(low, int)
    assert isinstance(high, int)
    return torch.fake_quantize_per_tensor_affine(x, scale, zero_point, low, high)


@pytest.mark.parametrize("name", MAKERS)
def test_circle_computes_what_the_graph_computes(
    name: str, tell: Callable[[str, Outcome], None], tmp_path: Path
) -> None:
    """The converter takes the saved program, and the file has the same codes."""
    made = case(name, PT2EConfig.circle())
    found = run(converted(made, tmp_path), on_first_grid(made.graph, made.test))
    outcome = made.outcome(found, "converted whole")
    tell(f"tico {version('tico')}", outcome)
    assert outcome.steps <= STEPS.get(name, 0)
