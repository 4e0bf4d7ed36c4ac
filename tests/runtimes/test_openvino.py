"""`PT2EConfig.openvino()` on OpenVINO, from an ONNX file."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from torch import Tensor

from runtime_models import MAKERS
from runtime_runs import HAS_VNNI, Outcome, case, exact, save_as_onnx
from tico_config import PT2EConfig

pytest.importorskip("openvino", reason="nox -s 'runtimes(openvino)' installs it")

# Scales are applied to sums in another order, which moves values near the middle of two codes.
STEPS = {"residual CNN": 1, "transformer encoder": 1, "upsampling CNN": 1}
# Linear layers of which the last has no bias become one kernel, whose results are not the file's, which
# ONNX Runtime computes bit for bit; OpenVINO 2026.4.1 does so for int8 activations too, with VNNI.
WRONG = "linear stack, no last bias"
LAYERS = ("FullyConnected", "Convolution", "Deconvolution", "MatMul")


def run(path: Path, x: Tensor) -> tuple[Tensor, str]:
    """Return what the file at `path` makes of `x`, and how many of its layers run on integers."""
    core = importlib.import_module("openvino").Core()
    options = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1}
    compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    result = torch.from_numpy(compiled(x.numpy())[0].copy())
    infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
    formats = [_text(info["runtimePrecision"]) for info in infos if _text(info["layerType"]) in LAYERS]
    integer = sum(each in ("u8", "i8") for each in formats)
    return result, f"{integer} of {len(formats)} layers on integers" if formats else "one fused kernel"


def _text(value: object) -> str:
    plain: object = getattr(value, "value", value)
    return str(plain)


@pytest.mark.parametrize("name", MAKERS)
def test_openvino_computes_what_the_graph_computes(
    name: str, tell: Callable[[str, Outcome], None], tmp_path: Path
) -> None:
    """At most a step off; where OpenVINO itself is wrong, it still is."""
    made, path = case(name, exact(PT2EConfig.openvino())), tmp_path / "model.onnx"
    save_as_onnx(made, path)
    outcome = made.outcome(*run(path, made.test))
    tell(f"openvino {version('openvino')}", outcome)
    if name == WRONG and HAS_VNNI:
        assert outcome.runtime < 0
    else:
        assert outcome.steps <= STEPS.get(name, 0)
