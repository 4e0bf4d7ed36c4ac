"""Scales moved from a norm into experts that stand in one parameter, and into the router beside them."""

from __future__ import annotations

import copy
from typing import Final

import pytest
import torch
from torch import Tensor, nn

from fused_models import FUSED, fused_model, token_ids
from tico.quantization import AWQConfig, SmoothQuantConfig, convert, prepare, report
from tico_config import BaseConfig
from tico_modules import named_modules
from tico_quantizers.layers import routers_in
from tico_quantizers.testing import seeded
from tiny_models import logits

CHOOSING: Final = tuple(name for name in FUSED if name != "llama4")
NORM: Final = "model.layers.1.post_attention_layernorm"
CONFIGS: Final = {
    "smoothquant": SmoothQuantConfig(),
    "searched": SmoothQuantConfig(alpha="auto"),
    "awq": AWQConfig(bits=3, group_size=None, round_weights=False, show_progress=False),
}


def with_outliers(name: str) -> nn.Module:
    """Return a model whose norms give some channels that are much larger than the others."""
    model = fused_model(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path and len(parameter) == 16:
                parameter[3] *= 20
                parameter[7] *= 0.1
    return model


def weight_of(model: nn.Module, path: str) -> Tensor:
    """Return the weight of a module in `model`."""
    return model.get_parameter(f"{path}.weight").detach()


def scaled(model: nn.Module, config: BaseConfig, tokens: Tensor) -> nn.Module:
    """Return `model` after an algorithm that leaves floats."""
    prepare(model, config)
    with torch.no_grad():
        model(tokens)
    return convert(model)


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", CHOOSING)
def test_the_function_stays_what_it_was(name: str, config: BaseConfig) -> None:
    """To rounding, for other tokens than those of the calibration; routers undo the scales as experts do."""
    model = with_outliers(name)
    before = copy.deepcopy(model)
    found = scaled(model, config, token_ids())
    with torch.no_grad():
        expected, other = logits(before, token_ids(5)), logits(found, token_ids(5))
    assert float((other - expected).norm()) < 2e-5 * float(expected.norm())
    router = next(path for path in routers_in(before) if ".1." in path)
    scale = weight_of(before, NORM) / weight_of(found, NORM)
    assert float(scale.max() / scale.min()) > 2
    torch.testing.assert_close(weight_of(found, router), weight_of(before, router) * scale)
    lines = {line.path: line.reason for line in report(found).layers}
    assert f"columns of weight multiplied for {NORM}" in lines[router]


@pytest.mark.parametrize("name", CHOOSING)
def test_smoothing_leaves_float_experts_and_says_so_once(name: str) -> None:
    """The module that transformers has, with one line for all of its experts."""
    model = with_outliers(name)
    classes = {path: type(module) for path, module in named_modules(model)}
    found = scaled(model, SmoothQuantConfig(), token_ids())
    assert {path: type(module) for path, module in named_modules(found)} == classes
    lines = {line.path: line.reason for line in report(found).layers if ".1." in line.path}
    experts = [reason for path, reason in lines.items() if ".experts" in path]
    assert experts == [f"columns of gate_up_proj multiplied for {NORM}"]
    assert len(lines[NORM]) < 250


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_experts_that_read_nothing_are_scaled_with_the_others(config: BaseConfig) -> None:
    """A token that is sent to one of them later meets the same function."""
    model = with_outliers("qwen3")
    before = copy.deepcopy(model)
    found = scaled(model, config, token_ids(rows=1, length=1))
    assert not torch.equal(weight_of(before, NORM), weight_of(found, NORM))
    with torch.no_grad():
        expected, other = logits(before, token_ids(5)), logits(found, token_ids(5))
    assert float((other - expected).norm()) < 2e-5 * float(expected.norm())


def test_short_floats_are_scaled_by_powers_of_two() -> None:
    """So that no weight of an expert or a router is rounded, and the function is the same bit for bit."""
    model = with_outliers("mixtral").to(torch.bfloat16)
    before = copy.deepcopy(model)
    found = scaled(model, SmoothQuantConfig(), token_ids())
    scale = weight_of(before, NORM).float() / weight_of(found, NORM).float()
    assert set(scale.log2().frac().tolist()) == {0.0}
    assert len(set(scale.tolist())) > 1


class Tied(nn.Module):
    """A matrix that is no layer reads the output of a norm, and something else reads it as well."""

    def __init__(self, use: str) -> None:
        """Make the parts."""
        super().__init__()
        self.norm, self.reader = nn.LayerNorm(8), nn.Linear(8, 8)
        self.matrix = nn.Parameter(torch.randn(3, 8))
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        """Return the tokens (rows, 8)."""
        hidden = self.norm(x)
        output: Tensor = self.reader(hidden) * nn.functional.linear(hidden, self.matrix).softmax(-1)[..., :1]
        match self.use:
            case "twice":
                output = output + nn.functional.linear(x, self.matrix).sum()
            case "its values":
                output = output * self.matrix.norm()
            case _:
                pass
        return output


@pytest.mark.parametrize(("use", "pairs"), [("once", True), ("twice", False), ("its values", False)])
def test_a_matrix_undoes_scales_only_if_nothing_else_depends_on_it(use: str, *, pairs: bool) -> None:
    """Otherwise its norm is left alone, with the reason."""
    model = nn.Sequential(seeded(lambda: Tied(use)), nn.LayerNorm(8), nn.Linear(8, 8)).eval()
    before = model.get_submodule("0.norm").get_parameter("weight").clone()
    prepare(model, SmoothQuantConfig())
    model(torch.randn(50, 8, generator=torch.Generator().manual_seed(0)) * torch.arange(1.0, 9.0))
    found = convert(model)
    assert torch.equal(found.get_submodule("0.norm").get_parameter("weight"), before) != pairs
    reason = next(line.reason for line in report(found).layers if line.path == "0.norm")
    assert ("0" in reason) if pairs else ("0.matrix" in reason)
