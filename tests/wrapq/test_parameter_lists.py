"""Weights in lists and dicts of parameters, which other modules read."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    PTQConfig,
    convert,
    load_calibration,
    load_quantized,
    prepare,
    save_calibration,
    save_quantized,
)
from tico.quantization.config import DType, affine, no_quant
from tico_quantizers.testing import seeded, values
from tico_wrapq import coverage

X = values(1, 3, 8)


class Stack(nn.Module):
    """Matrices in a list that are multiplied in turn, and a vector that is added."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = nn.ParameterList([nn.Parameter(torch.randn(8, 8)) for _ in range(3)])
        self.shift = nn.ParameterDict({"last": nn.Parameter(torch.randn(8))})

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says, of `x` (samples, 8)."""
        for number, weight in enumerate(self.weights):
            x = torch.relu(x @ weight) if number + 1 < len(self.weights) else x @ weight
        shifted: Tensor = x + self.shift["last"]
        return shifted


class Below(nn.Module):
    """A list of lists, a dict whose weights a layer's function reads, and a weight that nothing reads."""

    def __init__(self) -> None:
        super().__init__()
        self.branches = nn.ModuleList([nn.ParameterList([nn.Parameter(torch.randn(8, 8))]) for _ in range(2)])
        self.named = nn.ParameterDict({"up": torch.randn(4, 8), "idle": torch.randn(4, 8)})

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says, of `x` (samples, 8)."""
        lists = (each for each in self.branches if isinstance(each, nn.ParameterList))
        first, second = (each[0] for each in lists)
        return nn.functional.linear(x @ first + x @ second, self.named["up"])


def converted(kind: type[nn.Module], config: PTQConfig) -> nn.Module:
    """Return a module of `kind` after one batch."""
    prepared = prepare(seeded(kind).eval(), config)
    assert torch.equal(prepared(X), seeded(kind).eval()(X))
    return convert(prepared)


def points(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """Return the points of each module that has a line."""
    lines = coverage(model).lines
    return {line.path: tuple(" ".join(point.split()[:2]) for point in line.points) for line in lines}


def test_each_item_is_a_weight_by_its_path() -> None:
    """A matrix has a grid for each output, as any weight that a step multiplies; a bias stays float."""
    model = converted(Stack, PTQConfig())
    assert points(model)["weights"] == ("0 uint8", "1 uint8", "2 uint8")
    assert not points(model)["shift"]
    assert [name for name, _ in model.named_parameters() if "like" not in name] == ["shift.last"]
    assert (model(X) - seeded(Stack).eval()(X)).abs().max() < 0.05 * seeded(Stack).eval()(X).abs().max()
    assert coverage(model).macs_share == 1.0


def test_items_are_asked_for_by_path() -> None:
    """As any weight: one in float, one with four bits; the products of the float one don't count."""
    overrides = {"weights.0": no_quant(), "weights.1": affine(DType.uint(4))}
    model = converted(Stack, PTQConfig(overrides=overrides))
    assert points(model)["weights"] == ("1 uint4", "2 uint8")
    assert torch.equal(model.get_parameter("weights.0"), seeded(Stack).get_parameter("weights.0"))
    assert coverage(model).macs_share == 0.0


def test_lists_of_lists_and_what_is_never_read() -> None:
    """A weight that no step reads stays float, and the report names it."""
    model = converted(Below, PTQConfig())
    assert points(model)["branches.0"] == points(model)["branches.1"] == ("0 uint8",)
    assert points(model)["named"] == ("up uint8",)
    assert model.get_parameter("named.idle").shape == (4, 8)


@pytest.mark.parametrize("kind", [Stack, Below])
def test_they_survive_saving_copying_and_export(kind: type[nn.Module], tmp_path: Path) -> None:
    """With the same bits, also from a calibration file."""
    model = converted(kind, PTQConfig())
    expected = model(X)
    save_quantized(model, tmp_path / "saved")
    others = [load_quantized(tmp_path / "saved", seeded(kind).eval()), copy.deepcopy(model)]
    others.append(pickle.loads(pickle.dumps(model)))  # noqa: S301  # made here
    seen = prepare(seeded(kind).eval(), PTQConfig())
    seen(X)
    save_calibration(seen, tmp_path / "seen")
    other = prepare(seeded(kind).eval(), PTQConfig())
    load_calibration(other, tmp_path / "seen")
    others.append(convert(other))
    assert all(torch.equal(each(X), expected) for each in others)
    program = torch.export.export(model, (X,), strict=False)
    assert torch.equal(program.module()(X), expected)


def test_lists_left_float_are_what_they_were() -> None:
    """With no grid asked for weights."""
    model = converted(Stack, attrs.evolve(PTQConfig(), weight=no_quant()))
    assert len(list(model.parameters())) == 4
