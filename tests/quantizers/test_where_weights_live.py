"""Weights and biases are taken wherever a layer holds them, and what is left in float is said."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

from smoothing_models import converted, output_of
from tico.quantization import AWQConfig, GPTQConfig, PT2EConfig, SmoothQuantConfig, convert, prepare, report
from tico_config import BaseConfig
from tico_quantizers.testing import seeded
from tiny_models import values

CONFIGS: dict[str, BaseConfig] = {
    "gptq": GPTQConfig(bits=8, show_progress=False),
    "awq": AWQConfig(bits=8, group_size=None, show_progress=False),
    "smoothquant": SmoothQuantConfig(alpha=0.9),
}


def in_buffer(module: nn.Module, name: str) -> None:
    """Freeze a tensor: it becomes a buffer."""
    value = module.get_parameter(name).detach()
    delattr(module, name)
    module.register_buffer(name, value)


def in_attribute(module: nn.Module, name: str) -> None:
    """Freeze a tensor: it becomes a plain attribute."""
    value = module.get_parameter(name).detach()
    delattr(module, name)
    setattr(module, name, value)


def chain() -> nn.Module:
    """Return layers that are in pairs, with large biases."""
    model = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for name, parameter in model.named_parameters():
        if not name.endswith("1.weight") and not name.endswith("3.weight"):
            nn.init.normal_(parameter, std=5 if name.endswith("bias") else 1)
    return model


@pytest.mark.parametrize("freeze", [in_buffer, in_attribute])
@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("paths", [["0"], ["1"], ["3"], ["0", "1", "3"]], ids="".join)
@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_frozen_tensors_count_like_parameters(
    config: BaseConfig, paths: list[str], name: str, freeze: Callable[[nn.Module, str], None]
) -> None:
    """A model whose tensors are buffers or plain attributes becomes what it does with parameters."""
    x = values(1, 6, 8)
    wanted = converted(seeded(chain), config, x)
    model = seeded(chain)
    for path in paths:
        freeze(model.get_submodule(path), name)
    found = converted(model, config, x)
    assert torch.equal(output_of(found, x), output_of(wanted, x))
    for path in ("1", "3"):
        assert type(found.get_submodule(path)) is type(wanted.get_submodule(path))


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
@pytest.mark.parametrize("name", ["weight", "bias"])
def test_pruned_tensors_are_computed(config: BaseConfig, name: str) -> None:
    """A hook makes them before each call, so that their layer is left alone, and the report says why."""
    model, x = seeded(chain), values(1, 6, 8)
    prune.random_unstructured(model.get_submodule("3"), name, amount=0.5)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    prepared = prepare(model, config)
    prepared(x)
    lines = {line.path: line for line in report(convert(prepared)).layers}
    assert lines["3"].weight == "float"
    if not isinstance(config, SmoothQuantConfig):
        assert lines["3"].reason.startswith(f"its {name} is computed from other parameters")


class Experts(nn.Module):
    """Two linear layers in one parameter."""

    def __init__(self) -> None:
        """Make the parameter."""
        super().__init__()
        self.up = nn.Parameter(torch.randn(2, 8, 16) / 4)
        self.down = nn.Parameter(torch.randn(2, 16, 8) / 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        return torch.stack([(x @ up).relu() @ down for up, down in zip(self.up, self.down, strict=True)]).sum(
            0
        )


class Mixed(nn.Module):
    """Parameters in every place that is no linear layer."""

    def __init__(self) -> None:
        """Make them."""
        super().__init__()
        self.embed = nn.Embedding(12, 8)
        self.positions = nn.Parameter(torch.randn(5, 8))
        self.norm, self.attention = nn.LayerNorm(8), nn.MultiheadAttention(8, 2, batch_first=True)
        self.experts, self.before, self.after = Experts(), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        """Return hidden states."""
        hidden: Tensor = self.norm(self.embed(tokens) + self.positions)
        hidden = self.attention(hidden, hidden, hidden, need_weights=False)[0]
        output: Tensor = self.after(torch.relu(self.before(hidden + self.experts(hidden))))
        return output


SAID = {
    "": "linear layers and convolutions",
    "embed": "linear layers and convolutions",
    "attention": "in_proj_weight, in_proj_bias: nn.MultiheadAttention computes with them itself",
    "attention.out_proj": "nn.MultiheadAttention reads its weight without calling it",
    "experts": "up, down: weights of several layers in one parameter",
}


@pytest.mark.parametrize("config", CONFIGS.values(), ids=CONFIGS)
def test_every_owner_of_a_float_parameter_has_a_line(config: BaseConfig) -> None:
    """With the reason, and the share of the model's parameters that it owns."""
    model, tokens = seeded(Mixed), torch.arange(10).view(2, 5)
    total = sum(parameter.numel() for parameter in model.parameters())
    owned = {
        path: sum(each.numel() for each in module.parameters(recurse=False)) / total
        for path, module in model.named_modules()
    }
    lines = {line.path: line for line in report(converted(model, config, tokens)).layers}
    integer = {"experts"} if isinstance(config, GPTQConfig | AWQConfig) else set()
    assert {path for path, share in owned.items() if share} - integer <= lines.keys()
    assert all(lines[f"{path}.up.1"].weight.startswith("uint") for path in integer)
    for path, reason in SAID.items():
        if path in integer:
            continue
        assert reason in lines[path].reason
        assert dict(lines[path].figures)["share of parameters"] == owned[path]


class Angles(nn.Module):
    """A parameter that only an operator computes with which no algorithm quantizes."""

    def __init__(self) -> None:
        """Make it."""
        super().__init__()
        self.angles = nn.Parameter(torch.randn(8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the angles between both."""
        return torch.atan2(x, self.angles)


def test_graphs_say_what_no_operator_computes_with() -> None:
    """Modules of the float model whose parameters only operators left in float read."""
    model, x = nn.Sequential(nn.Linear(8, 8), Angles()).eval(), values(1, 6, 8)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    prepared(x)
    lines = {line.path: line for line in report(convert(prepared)).layers}
    assert lines["0"].weight != "float"
    assert lines["1"].reason == "pt2e quantizes none of the operators that compute with them"
    assert dict(lines["1"].figures)["share of parameters"] == 8 / 80


def test_shares_count_integers_too() -> None:
    """After a second run, what is left has the share that it had after the first."""
    model, tokens = seeded(Mixed), torch.arange(10).view(2, 5)
    once = converted(model, GPTQConfig(show_progress=False), tokens)
    twice = converted(once, GPTQConfig(bits=8, show_progress=False), tokens)
    shares = [
        dict(next(line for line in report(each).layers if line.path == "embed").figures)
        for each in (once, twice)
    ]
    assert shares[0] == shares[1]
