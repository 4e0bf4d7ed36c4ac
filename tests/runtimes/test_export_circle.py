"""`PT2(dialect="circle")`: a converted model through Samsung's converter and its reference runtime."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest
import torch

from runtime_runs import case
from tico_config import PT2EConfig
from tico_export import PT2, export, to_circle

pytest.importorskip("circle_schema", reason="nox -s 'runtimes(circle)' installs it")


@pytest.mark.parametrize("name", ["linear stack", "upsampling CNN"])
def test_circle_gives_what_the_model_gives(name: str, tmp_path: Path) -> None:
    """The converter takes the file, and its runtime gives the model's outputs, a step off at most."""
    made = case(name, PT2EConfig.circle())
    export(made.graph.eval(), tmp_path / "m.pt2", PT2(dialect="circle"), args=(made.test,))
    converter = Path(sys.executable).with_name("pt2-to-circle")
    binary = to_circle(tmp_path / "m.pt2", tmp_path / "m.circle", converter).read_bytes()
    runtime = importlib.import_module("tico.circle.runtime")
    mode = runtime.ExecutionMode.FAKE_QUANTIZE
    found = torch.from_numpy(runtime.CircleReferenceRuntime(binary).run([made.test], mode=mode).outputs[0])
    outcome = made.outcome(found)
    print(outcome)  # noqa: T201  # for the record
    assert outcome.steps <= 1
