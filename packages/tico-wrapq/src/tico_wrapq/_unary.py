"""Wrappers of modules that make one tensor of one tensor, by one table."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tico_wrapq._point import ACT_IN, ACT_OUT, PointDeclaration
from tico_wrapq._quant_module_base import QuantModuleBase
from tico_wrapq._registry import register, try_register

_TORCH = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.ELU,
    nn.GELU,
    nn.GroupNorm,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.LayerNorm,
    nn.LeakyReLU,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.PReLU,
    nn.RMSNorm,
    nn.ReLU,
    nn.ReLU6,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softmax,
    nn.Tanh,
    nn.Upsample,
)
_TRANSFORMERS = (
    "transformers.activations.SiLUActivation",
    "transformers.activations.GELUActivation",
    "transformers.models.llama.modeling_llama.LlamaRMSNorm",
)


@try_register(*_TRANSFORMERS)
class QuantUnary(QuantModuleBase):
    """A module with one input and one output, each of which gets a grid; its own parameters stay float."""

    kind: ClassVar[str] = "ptq.unary"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, ACT_OUT)
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the module."""
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        """Return the module's output, input and output passed through their points."""
        output: Tensor = self.module(self.point("act_in")(x))
        moved: Tensor = self.point("act_out")(output)
        return moved


for _kind in _TORCH:
    register(_kind)(QuantUnary)
