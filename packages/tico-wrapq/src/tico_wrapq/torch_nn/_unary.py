"""Wrappers of modules that make one tensor of one tensor, by one table."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from tico_wrapq.base import ACT_IN, ACT_OUT, PointDeclaration, QuantModuleBase, register
from tico_wrapq.torch_nn._channel_axis import along, channel_axis
from tico_wrapq.torch_nn._pass_through import MOVES_VALUES

_TORCH = (
    nn.AdaptiveAvgPool1d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveAvgPool3d,
    nn.AdaptiveMaxPool1d,
    nn.AdaptiveMaxPool2d,
    nn.AdaptiveMaxPool3d,
    nn.AvgPool1d,
    nn.AvgPool2d,
    nn.AvgPool3d,
    nn.CELU,
    nn.ConstantPad1d,
    nn.ConstantPad2d,
    nn.ConstantPad3d,
    nn.CrossMapLRN2d,
    nn.ELU,
    nn.Fold,
    nn.FractionalMaxPool2d,
    nn.FractionalMaxPool3d,
    nn.GELU,
    nn.GLU,
    nn.Hardshrink,
    nn.Hardsigmoid,
    nn.Hardswish,
    nn.Hardtanh,
    nn.InstanceNorm1d,
    nn.InstanceNorm2d,
    nn.InstanceNorm3d,
    nn.LeakyReLU,
    nn.LocalResponseNorm,
    nn.LogSigmoid,
    nn.LogSoftmax,
    nn.LPPool1d,
    nn.LPPool2d,
    nn.LPPool3d,
    nn.MaxPool1d,
    nn.MaxPool2d,
    nn.MaxPool3d,
    nn.Mish,
    nn.PReLU,
    nn.RReLU,
    nn.ReLU,
    nn.ReLU6,
    nn.SELU,
    nn.SiLU,
    nn.Sigmoid,
    nn.Softmax,
    nn.Softmax2d,
    nn.Softmin,
    nn.Softplus,
    nn.Softshrink,
    nn.Softsign,
    nn.Tanh,
    nn.Tanhshrink,
    nn.Threshold,
    nn.Upsample,
)

_PADS = (nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)


class QuantUnary(QuantModuleBase):
    """A module with one input and one output, each of which gets a grid; its parameters stay float."""

    kind: ClassVar[str] = "ptq.unary"
    writes_to_input: ClassVar[bool] = True
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_IN, ACT_OUT)
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the module."""
        self.module = module

    @classmethod
    def points_of(cls, module: nn.Module) -> tuple[PointDeclaration, ...]:
        """Return the points, with the axis of the module's channels."""
        return along(cls.points, channel_axis(module))

    @classmethod
    def pass_reason(cls, module: nn.Module) -> str | None:
        """Return why `module` needs no grids: it pads with zeros, which every grid has."""
        return MOVES_VALUES if isinstance(module, _PADS) and module.value == 0 else None

    @classmethod
    def refusal(cls, module: nn.Module) -> str | None:
        """Return why `module` does not make one tensor of one tensor, or None."""
        return "it returns indices too" if getattr(module, "return_indices", False) else None

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return the module's output; the input, by whatever name, and the output pass through points.

        A module that works in place writes to its input, which others may read: so does the wrapper.
        """
        moved_args = tuple(map(self._moved_in, args))
        moved_kwargs = {name: self._moved_in(value) for name, value in kwargs.items()}
        moved: Tensor = self.point("act_out")(self._output(*moved_args, **moved_kwargs))
        given = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), moved)
        in_place: bool = getattr(self.module, "inplace", False)
        return given.copy_(moved) if in_place and given is not moved else moved

    def _output(self, *args: object, **kwargs: object) -> Tensor:
        """Return what the module makes of arguments that have passed through their points."""
        output: Tensor = self.module(*args, **kwargs)
        return output

    def _moved_in(self, value: object) -> object:
        """Return a tensor passed through `act_in`, and any other argument as it is."""
        return self.point("act_in")(value) if isinstance(value, Tensor) else value


for _kind in _TORCH:
    register(_kind)(QuantUnary)
