"""What chooses the experts of a token stays in float unless it is asked for."""

from __future__ import annotations

from typing import Final

import attrs
import pytest
import torch
from torch import Tensor, nn

from fused_models import FUSED, fused_model, token_ids
from tico.quantization import AWQConfig, GPTQConfig, PTQConfig, convert, prepare, report
from tico_config import BaseConfig, ConfigError, DType, QuantSpec, affine, no_quant
from tico_modules import QuantizedLinear
from tico_quantizers.layers import routers_in
from tico_quantizers.testing import seeded
from tico_wrapq import coverage

CONFIGS: Final = (GPTQConfig(show_progress=False), AWQConfig(show_progress=False, group_size=None))


class Layered(nn.Module):
    """Experts in a list, a router that has a layer, and a gate of what they share."""

    def __init__(self) -> None:
        """Make the parts."""
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.router = nn.Sequential(nn.Linear(8, 3))
        self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))
        self.shared_expert, self.shared_expert_gate = nn.Linear(8, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (rows, 8)."""
        hidden = self.norm(x)
        output: Tensor = self.shared_expert(hidden) * self.shared_expert_gate(hidden).sigmoid()
        chosen = self.router(hidden).argmax(-1)
        for number, expert in enumerate(self.experts):
            rows = (chosen == number).nonzero()[:, 0]
            output = output.index_add(0, rows, expert(hidden[rows]))
        return output


def quantized(model: nn.Module, config: BaseConfig, x: Tensor) -> nn.Module:
    """Return `model` after an algorithm on one batch."""
    prepare(model, config)
    with torch.no_grad():
        model(x)
    return convert(model)


@pytest.mark.parametrize("config", CONFIGS, ids=["gptq", "awq"])
@pytest.mark.parametrize("name", FUSED)
def test_routers_of_transformers_stay_float_by_name(name: str, config: BaseConfig) -> None:
    """Whether they are layers or not; the report says of each what it does."""
    model = fused_model(name)
    before = {path: model.get_parameter(f"{path}.weight").clone() for path in routers_in(model)}
    assert len(before) == 2
    found = quantized(model, config, token_ids())
    lines = {line.path: line for line in report(found).layers}
    for path, weight in before.items():
        assert "chooses the experts of a token" in lines[path].reason
        assert lines[path].weight == "float"
        assert found.get_parameter(f"{path}.weight").shape == weight.shape


@pytest.mark.parametrize("config", CONFIGS, ids=["gptq", "awq"])
def test_a_router_that_is_a_layer_can_be_asked_for(config: GPTQConfig | AWQConfig) -> None:
    """By an override with its exact path; others of the model stay float still, with the reason."""
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    asked = attrs.evolve(config, overrides={"router.0": {"bits": 8}})
    found = quantized(seeded(Layered), asked, x)
    assert isinstance(found.get_submodule("router.0"), QuantizedLinear)
    assert type(found.get_submodule("shared_expert_gate")) is nn.Linear
    line = next(line for line in report(found).layers if line.path == "shared_expert_gate")
    assert "says how much the shared expert counts" in line.reason


def test_a_router_that_is_no_layer_is_asked_for_in_another_way() -> None:
    """The error says which, and it works after GPTQ has run: the weight alone becomes integers."""
    path = next(iter(routers_in(fused_model("qwen3"))))
    asked = attrs.evolve(CONFIGS[0], overrides={path: {"bits": 8}})
    with pytest.raises(ConfigError, match=f"PTQConfig.overrides={{'{path}.weight'"):
        prepare(fused_model("qwen3"), asked)
    model = quantized(fused_model("qwen3"), CONFIGS[0], token_ids())
    weight = {f"{path}.weight": affine(DType.int(8))}
    config = PTQConfig(weight=no_quant(), activation=no_quant(), overrides=weight)
    lines = {line.path: line.points for line in coverage(quantized(model, config, token_ids())).lines}
    assert lines[path] == ("weight int8 symmetric",)


WEIGHT: Final = affine(DType.int(8))


@pytest.mark.parametrize("activation", [PTQConfig().activation, no_quant()], ids=["points", "weights alone"])
def test_ptq_leaves_the_weights_of_routers_float_too(activation: QuantSpec) -> None:
    """Layers or not, with the reason; experts get their grids, and what routers compute keeps its points."""
    config = PTQConfig(activation=activation, strict_wrap=False)
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    for model, given in ((seeded(Layered), x), (fused_model("qwen3"), token_ids())):
        routers = routers_in(model)
        found = quantized(model, config, given)
        lines = {line.path: line for line in report(found).layers}
        assert routers
        for path, does in routers.items():
            assert lines[path].weight == "float"
            assert f"it {does}; its weight is quantized only if an override names it" in lines[path].reason
        assert any("expert" in path and "int8" in line.weight for path, line in lines.items())


@pytest.mark.parametrize("pattern", ["router.0", "router.0.weight", "*.weight"])
def test_ptq_quantizes_routers_that_an_override_names(pattern: str) -> None:
    """By the path of the module or of its weight, or by a pattern."""
    config = PTQConfig(activation=no_quant(), strict_wrap=False, overrides={pattern: WEIGHT})
    x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0))
    found = quantized(seeded(Layered), config, x)
    assert isinstance(found.get_submodule("router.0"), QuantizedLinear)
    assert not next(line for line in report(found).layers if line.path == "router.0").reason


def test_names_alone_make_no_router() -> None:
    """A gate beside convolutions or layers, as in other kinds of models, is quantized as any layer."""
    plain = nn.ModuleDict({"gate": nn.Linear(8, 4), "up": nn.Linear(8, 4), "conv": nn.Conv1d(4, 4, 3)})
    assert routers_in(plain) == {}
