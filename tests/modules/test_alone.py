"""`tico-modules` is enough to load and run a saved model, unless modules of another package are in it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import ClassVar, Final

import pytest
import torch
from torch import nn

from artifact_folder import MANIFEST, rewrite_with
from distributions import modules_above
from hidden_modules import run_without
from tico.quantization import PTQConfig, convert, prepare
from tico_config import ArtifactError, DType, UnsupportedError
from tico_modules import (
    PackedWeight,
    Parts,
    QuantizedConv2d,
    QuantizedEmbedding,
    QuantizedLinear,
    RestorableModule,
    load_quantized,
    save_quantized,
)
from tico_quantizers.testing import refused
from tiny_models import values

HIDDEN: Final = (*modules_above("tico-modules"), "numpy", "safetensors", "torchao", "tqdm", "transformers")

LOAD_AND_RUN: Final = """
from pathlib import Path
import torch
from torch import nn
from tico_modules import load_quantized

folder = Path(sys.argv[2])
skeleton = eval(sys.argv[3])
inputs, expected = torch.load(folder / "call.pt", weights_only=True)
model = load_quantized(folder, nn.Sequential(skeleton))
assert type(model[0]) is not type(skeleton), model
assert torch.equal(model(inputs), expected)
assert not any(name in sys.modules for name in sys.argv[1].split())
"""


def embedding() -> nn.Module:
    """Return an integer table of 10 rows of 4."""
    table = PackedWeight.round_to_nearest(values(0, 10, 4), DType.uint(8), symmetric=False, group_size=None)
    return QuantizedEmbedding(Parts(packed=table))


CASES: Final = {
    "nn.Linear(8, 4)": lambda: QuantizedLinear.from_float(nn.Linear(8, 4), DType.uint(4), group_size=4),
    "nn.Embedding(10, 4)": embedding,
    "nn.Conv2d(2, 3, 3, padding=1)": lambda: QuantizedConv2d.from_float(
        nn.Conv2d(2, 3, 3, padding=1), DType.int(8), symmetric=True
    ),
}

INPUTS: Final = {
    "nn.Linear(8, 4)": values(1, 5, 8),
    "nn.Embedding(10, 4)": torch.arange(10),
    "nn.Conv2d(2, 3, 3, padding=1)": values(1, 1, 2, 4, 4),
}


@pytest.mark.parametrize("skeleton", CASES)
def test_a_saved_model_runs_where_nothing_above_is_installed(skeleton: str, tmp_path: Path) -> None:
    """The same bits come out, and neither a layer above nor an optional package is imported."""
    make: Callable[[], nn.Module] = CASES[skeleton]
    model = nn.Sequential(make())
    torch.save((INPUTS[skeleton], model(INPUTS[skeleton])), tmp_path / "call.pt")
    save_quantized(model, tmp_path)
    finished = run_without(HIDDEN, LOAD_AND_RUN, str(tmp_path), skeleton)
    assert finished.returncode == 0, finished.stderr


def ptq_model(folder: Path) -> None:
    """Save a model with an activation function that became a module of tico-wrapq."""
    model = prepare(nn.Sequential(nn.Linear(8, 4), nn.ReLU()), PTQConfig())
    model(values(0, 4, 8))
    save_quantized(convert(model), folder)


LOAD: Final = """
from torch import nn
from tico_modules import load_quantized
load_quantized(sys.argv[2], nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
"""


def test_a_package_that_cannot_be_imported_is_named(tmp_path: Path) -> None:
    """With the reason, and what to install."""
    ptq_model(tmp_path)
    error = run_without(HIDDEN, LOAD, str(tmp_path)).stderr
    assert "ArtifactError" in error
    assert (
        "of the package tico_wrapq, which cannot be imported (ModuleNotFoundError: tico_wrapq is hidden)"
        in error
    )
    assert "pip install --upgrade tico-wrapq" in error


def _offer(monkeypatch: pytest.MonkeyPatch, *points: EntryPoint) -> None:
    monkeypatch.setattr("tico_modules._files.module_kinds.find_entry_points", lambda group: points)


def _own() -> EntryPoint:
    (point,) = entry_points(group="tico.modules", name="modules")
    return point


def test_a_package_that_is_not_installed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The manifest says which package each module is from."""
    ptq_model(tmp_path)
    _offer(monkeypatch, _own())
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    with refused(model, ArtifactError, field="kind", module=f"{tmp_path / MANIFEST}.modules.1") as caught:
        load_quantized(tmp_path, model)
    assert "of the package tico_wrapq; pip install --upgrade tico-wrapq" in str(caught.value)


def test_a_file_without_packages_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Manifests are read that were written before packages stood in them; only the remedy is vaguer."""

    def forget(manifest: dict[str, object]) -> None:
        for entry in manifest["modules"].values():  # type: ignore[attr-defined]
            del entry["package"]

    ptq_model(tmp_path)
    rewrite_with(tmp_path, forget)
    load_quantized(tmp_path, nn.Sequential(nn.Linear(8, 4), nn.ReLU()))
    _offer(monkeypatch, _own())
    model = nn.Sequential(nn.Linear(8, 4), nn.ReLU())
    with refused(model, ArtifactError, field="kind", module=f"{tmp_path / MANIFEST}.modules.1") as caught:
        load_quantized(tmp_path, model)
    assert "install its package" in str(caught.value)


class Imposter(RestorableModule):
    """Has the kind of another class."""

    kind: ClassVar[str] = "linear"


IMPOSTERS: Final = (Imposter,)


def test_two_classes_of_one_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody could tell which of them a file means."""
    save_quantized(nn.Sequential(embedding()), tmp_path)
    monkeypatch.setitem(sys.modules, "imposters", sys.modules[__name__])
    _offer(monkeypatch, _own(), EntryPoint("imposter", "imposters:IMPOSTERS", "tico.modules"))
    model = nn.Sequential(nn.Embedding(10, 4))
    with refused(model, UnsupportedError, field="entry point imposter") as caught:
        load_quantized(tmp_path, model)
    assert "QuantizedLinear and Imposter" in str(caught.value)
