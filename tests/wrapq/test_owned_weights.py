"""Weights that a module owns itself, where its steps have no points: in errors, reports and coverage."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, coverage, prepare, report
from tico.quantization.config import ConfigError, UnsupportedError, no_quant
from tico_quantizers.testing import refused
from tico_wrapq import Coverage
from tiny_models import images, net, tiny_llama, values


class Experts(nn.Module):
    """Three experts in one parameter, with an activation between their products, as in Mixtral."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Parameter(values(0, 3, 8, 8))
        self.down = nn.Parameter(values(1, 3, 8, 8))
        self.act_fn = nn.SiLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of the experts."""
        inner = self.act_fn(torch.einsum("...i,eio->...eo", x, self.up))
        return torch.einsum("...ei,eio->...o", inner, self.down)


class Mixture(nn.Module):
    """A layer before the experts, and a table of positions that the model itself owns."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(values(2, 4, 8))
        self.layer, self.experts = nn.Linear(8, 8), Experts()

    def forward(self, x: Tensor) -> Tensor:
        """Return what the experts make of the layer's output."""
        mixed: Tensor = self.experts(self.layer(x) + self.positions)
        return mixed


X = values(3, 2, 4, 8)
DECLARED = PTQConfig(steps="declared")
LEFT = {"positions": no_quant(), "experts.up": no_quant(), "experts.down": no_quant()}


def test_strict_means_strict() -> None:
    """A module that owns float weights is refused, children or not; all of them, with their names."""
    model = Mixture().eval()
    with refused(model, UnsupportedError, module="Mixture") as error:
        prepare(model, DECLARED)
    assert [problem.module for problem in error.value.problems] == ["Mixture", "experts"]
    for part in ("it owns: positions", "it owns: up, down", "'experts.down': no_quant()"):
        assert part in str(error.value)


def test_each_weight_is_left_float_by_its_path() -> None:
    """Layers below the module are quantized; a weight that is not named is still refused."""
    model = Mixture().eval()
    with refused(model, UnsupportedError, module="experts"):
        prepare(model, attrs.evolve(DECLARED, overrides={"positions": no_quant(), "experts.up": no_quant()}))
    prepare(model, attrs.evolve(DECLARED, overrides=LEFT))
    model(X)
    convert(model)
    points = {line.path: bool(line.points) for line in coverage(model).lines}
    assert points == {"": False, "layer": True, "experts": False, "experts.act_fn": True}


def test_module_is_left_float_by_its_path() -> None:
    """With everything below it."""
    left = {"positions": no_quant(), "experts*": no_quant()}
    model = prepare(Mixture().eval(), attrs.evolve(DECLARED, overrides=left))
    model(X)
    points = {line.path: bool(line.points) for line in coverage(convert(model)).lines}
    assert points == {"": False, "layer": True, "experts": False, "experts.act_fn": False}


def test_unknown_weight_is_refused() -> None:
    """A misspelt path is told."""
    model, config = Mixture().eval(), PTQConfig(strict_wrap=False, overrides={"experts.upp": no_quant()})
    with refused(model, ConfigError, field="overrides") as error:
        prepare(model, config)
    assert "experts.up" in str(error.value)


def _measured() -> Coverage:
    model = prepare(Mixture().eval(), attrs.evolve(DECLARED, strict_wrap=False))
    model(X)
    before = coverage(model)
    after = coverage(convert(model))
    assert before.unmeasured == after.unmeasured
    return after


def test_what_was_not_measured_is_no_integer_arithmetic() -> None:
    """The sentence speaks of what was measured, and says how much was not."""
    found = _measured()
    assert found.unmeasured == (("", 32), ("experts", 384))
    assert found.unmeasured_share == (32 + 384) / (32 + 384 + 64 + 0)
    assert "of the 512 multiply-accumulates that were measured" in str(found)
    assert "86.7% of the parameters, which are float, were not measured: the model itself, experts" in str(
        found
    )
    assert '"unmeasured_share": 0.8' in found.to_json()


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[nn.Module], object]]] = {
    "mixture": (Mixture, lambda model: model(X)),
    "convolutions": (net, lambda model: model(images(0))),
    "attention that stays whole": (
        lambda: nn.Sequential(nn.Linear(8, 8), _Attending(nn.MultiheadAttention(8, 2, kdim=8, vdim=6))),
        lambda model: model(values(0, 4, 2, 8)),
    ),
    "recurrent": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GRU(8, 8)),
        lambda model: model(values(0, 4, 2, 8)),
    ),
    "language model": (tiny_llama, lambda model: model(torch.arange(8).view(2, 4))),
}


class _Attending(nn.Module):
    def __init__(self, attention: nn.MultiheadAttention) -> None:
        super().__init__()
        self.attention = attention
        self.probe = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        attended: Tensor = self.attention(x, x, x[..., :6])[0]
        return attended + self.probe


@pytest.mark.parametrize("name", MODELS)
def test_everything_that_owns_floats_has_a_line(name: str) -> None:
    """In the report and in the coverage, with a reason where nothing was done to it."""
    make, run = MODELS[name]
    model = make().eval()
    owners = {
        path
        for path, module in model.named_modules()
        if any(each.is_floating_point() for each in module.parameters(recurse=False))
    }
    prepare(model, PTQConfig(strict_wrap=False))
    run(model)
    for found in (coverage(model), coverage(convert(model))):
        lines = {line.path: line for line in found.lines}
        assert owners <= lines.keys()
        assert all(line.points or line.reason for path, line in lines.items() if path in owners)
    assert owners <= {line.path for line in report(model).layers}


MOVERS: list[nn.Module] = [
    *(nn.Identity(), nn.Flatten(), nn.Unflatten(1, (2, 2)), nn.PixelShuffle(2), nn.PixelUnshuffle(2)),
    *(nn.ChannelShuffle(2), nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad1d(1), nn.Unfold(2)),
    *(nn.CircularPad2d(1), nn.ZeroPad1d(1), nn.ZeroPad3d(1)),
]


@pytest.mark.parametrize("mover", MOVERS, ids=lambda mover: type(mover).__name__)
def test_what_only_moves_values_is_no_problem(mover: nn.Module) -> None:
    """It owns nothing and computes nothing, so strictness has nothing against it."""
    model = prepare(nn.Sequential(nn.Linear(4, 4), mover).eval(), PTQConfig())
    assert {line.path: line.reason for line in coverage(model).lines}["1"] == "it does not compute"


@pytest.mark.parametrize("kind", [nn.ParameterList, nn.ParameterDict])
def test_lists_of_parameters_are_weights(kind: type[nn.Module]) -> None:
    """What holds float weights is no mere container, where only wrappers have points."""
    held = nn.ParameterList([values(0, 4, 4)]) if kind is nn.ParameterList else nn.ParameterDict({"w": X})
    model = nn.ModuleList([nn.Linear(4, 4), held]).eval()
    with refused(model, UnsupportedError, module="1"):
        prepare(model, PTQConfig(steps="declared"))


def test_a_bias_shared_with_a_layer_is_the_layers() -> None:
    """The head of BERT holds the bias of the layer in it too, and owns nothing that has no wrapper."""
    model = nn.Sequential(nn.Linear(8, 8))
    model.bias = model[0].bias
    prepare(model.eval(), PTQConfig())
