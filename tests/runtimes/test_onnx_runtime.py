"""`PT2EConfig.onnx_runtime()` on ONNX Runtime."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime_models import MAKERS
from runtime_runs import Outcome, case, exact, save_as_onnx
from tico_config import PT2EConfig

pytest.importorskip("onnxruntime", reason="nox -s 'runtimes(onnx_runtime)' installs it")

# As `Onnx()` verifies its files: it makes one grid of two in a row that differ.
LEFT_OUT = ("DoubleQDQPairsRemover",)
STEPS = {
    # A softmax of its own and products of activations on integers move values near the middle of two codes.
    "attention": 1,
    # The same twice over, with residuals that carry the differences on: 2 with weights of 8 bits, 3 with 7.
    "transformer encoder": 3,
}


def run(path: Path, x: Tensor, level: str) -> Tensor:
    """Return what the file at `path` makes of `x` at a level of optimization."""
    runtime = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.graph_optimization_level = getattr(runtime.GraphOptimizationLevel, level)
    session = runtime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"], disabled_optimizers=list(LEFT_OUT)
    )
    (result,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    return torch.from_numpy(result)


@pytest.mark.parametrize("name", MAKERS)
def test_onnx_runtime_computes_what_the_graph_computes(
    name: str, tell: Callable[[str, Outcome], None], tmp_path: Path
) -> None:
    """The same bits as the file says it, and at most as many steps off as given with integer kernels."""
    made, path = case(name, exact(PT2EConfig.onnx_runtime())), tmp_path / "model.onnx"
    save_as_onnx(made, path)
    plain = made.outcome(run(path, made.test, "ORT_DISABLE_ALL"), "optimizations off")
    fused = made.outcome(run(path, made.test, "ORT_ENABLE_ALL"), "optimizations on")
    for outcome in (plain, fused):
        tell(f"onnxruntime {version('onnxruntime')}", outcome)
    assert plain.steps == 0
    assert fused.steps <= STEPS.get(name, 0)
