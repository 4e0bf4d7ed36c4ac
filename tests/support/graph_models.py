"""Small models for graph quantization, and what their graphs hold."""

from __future__ import annotations

from collections import Counter
from typing import Protocol, cast

import torch
from torch import Tensor, fx, nn

from tico.quantization import convert, prepare
from tico_config import PT2EConfig
from tico_pt2e import QuantGraph
from tiny_models import values


class TensorFunction(Protocol):
    """Any function of tensors, perhaps with layers by keyword."""

    def __call__(self, *inputs: Tensor, **layers: nn.Module) -> object:
        """Return what it makes of them."""


class Function(nn.Module):
    """A function of tensors as a module."""

    def __init__(self, function: object, **layers: nn.Module) -> None:
        """Keep the function, which is given the layers by name."""
        super().__init__()
        self.function = cast("TensorFunction", function)
        self.layers = nn.ModuleDict(layers)

    def forward(self, *inputs: Tensor) -> object:
        """Return what the function makes of the inputs."""
        return self.function(*inputs, **self.layers)


class ConvNet(nn.Module):
    """Convolutions with norms and activation functions, pooled and classified."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU6())
        self.deep = nn.Sequential(
            nn.Conv2d(12, 12, 3, groups=12, bias=False), nn.BatchNorm2d(12), nn.Hardswish()
        )
        self.wide = nn.Conv2d(12, 12, 1)
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        """Return 5 values for each image (3, 8, 8)."""
        hidden: Tensor = self.deep(self.stem(x))
        hidden = hidden + self.wide(hidden)
        output: Tensor = self.head(hidden.mean((2, 3)))
        return output


def conv_net() -> ConvNet:
    """Return a net, always the same one, in evaluation mode, with norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConvNet()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean = torch.randn(module.num_features) / 4
                module.running_var = torch.rand(module.num_features) + 0.5
    nn.Module.eval(model)
    return model


def encoder() -> nn.Module:
    """Return a transformer encoder of two layers, always the same one, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, activation="gelu")
        model = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
    return model.eval()


def photos(seed: int, count: int = 4) -> Tensor:
    """Return random images (count, 3, 8, 8), always the same ones for a seed."""
    return values(seed, count, 3, 8, 8)


def calibrated(model: nn.Module, config: PT2EConfig, *inputs: Tensor) -> QuantGraph:
    """Return `model` prepared and calibrated with its example inputs."""
    graph = prepare(model, config, args=inputs, inplace=False)
    assert isinstance(graph, QuantGraph)
    graph(*inputs)
    return graph


def quantized(model: nn.Module, config: PT2EConfig, *inputs: Tensor) -> QuantGraph:
    """Return `model` quantized with its example inputs as the calibration data."""
    graph = convert(calibrated(model, config, *inputs))
    assert isinstance(graph, QuantGraph)
    return graph


def calls(graph: fx.GraphModule) -> Counter[str]:
    """Count the operators of a graph, without namespace and overload."""
    nodes = [node for node in graph.graph.nodes if node.op == "call_function"]
    return Counter(str(node.target).split(".")[1] for node in nodes if str(node.target).count(".") == 2)


def decibels(signal: Tensor, other: Tensor) -> float:
    """Return the ratio of `signal` to its difference from `other`."""
    noise = (signal - other).detach().double().square().sum()
    return float(10 * torch.log10(signal.detach().double().square().sum() / noise))
