"""Arithmetic between tensors as modules, so that hand-written models can mark where it is quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from tico_wrapq.base import ACT_OUT, PointDeclaration, QuantModuleBase, Role, register

_OUTPUT = attrs.evolve(ACT_OUT, channels=None)


@final
class Add(nn.Module):
    """``left + right``, with a point for each of the two and for the sum once it is prepared.

    >>> Add()(torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([3.])
    """

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the sum, broadcast."""
        return left + right


@final
class Mul(nn.Module):
    """``left * right``, with a point for each of the two and for the product once it is prepared.

    >>> Mul()(torch.tensor([3.0]), torch.tensor([2.0]))
    tensor([6.])
    """

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the product of the elements, broadcast."""
        return left * right


@final
class MatMul(nn.Module):
    """``left @ right``, with a point for each of the two and for the product once it is prepared.

    >>> MatMul()(torch.ones(2, 3), torch.ones(3, 4)).shape
    torch.Size([2, 4])
    """

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return the matrix product of shape (..., rows of `left`, columns of `right`)."""
        return left @ right


@final
class Concat(nn.Module):
    """Tensors one after the other along `dim`, with a point for the result once it is prepared.

    >>> Concat(dim=0)(torch.tensor([1.0]), torch.tensor([2.0]))
    tensor([1., 2.])
    """

    def __init__(self, dim: int = -1) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, *tensors: Tensor) -> Tensor:
        """Return the tensors, alike in every axis but `dim`, as one."""
        return torch.cat(tensors, self.dim)

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"dim={self.dim}"


@final
class QuantStub(nn.Module):
    """The tensor itself, with a point once it is prepared: where a model takes in what no module has made.

    >>> QuantStub()(torch.tensor([1.0]))
    tensor([1.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x


@register(Add)
@register(Mul)
@register(MatMul)
class QuantJoint(QuantModuleBase):
    """A joint of two tensors, each of which gets a grid, and so does what becomes of them."""

    kind: ClassVar[str] = "ptq.joint"
    points: ClassVar[tuple[PointDeclaration, ...]] = (
        PointDeclaration("left", Role.ACTIVATION_IN, channels=None),
        PointDeclaration("right", Role.ACTIVATION_IN, channels=None),
        _OUTPUT,
    )
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the joint."""
        self.module = module

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        """Return what the joint makes of both, passed through their points."""
        output: Tensor = self.module(self.point("left")(left), self.point("right")(right))
        moved: Tensor = self.point("act_out")(output)
        return moved

    def work(self, args: tuple[object, ...], kwargs: Mapping[str, object], output: object) -> int:
        """Return the multiply-accumulates of one call: those of a matrix product."""
        left = args[0] if args else kwargs.get("left")
        if isinstance(self.module, MatMul) and isinstance(left, Tensor) and isinstance(output, Tensor):
            return output.numel() * left.shape[-1]
        return 0


@register(nn.CosineSimilarity)
@register(nn.PairwiseDistance)
class QuantComparison(QuantJoint):
    """A measure of how near two tensors are, each of which gets a grid, and so does the measure."""

    kind: ClassVar[str] = "ptq.comparison"

    def forward(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Return the measure of both, passed through their points."""
        return super().forward(x1, x2)


@register(Concat)
@register(QuantStub)
class QuantOutput(QuantModuleBase):
    """A module whose output gets a grid; what it takes in has one already, or needs none."""

    kind: ClassVar[str] = "ptq.output"
    points: ClassVar[tuple[PointDeclaration, ...]] = (_OUTPUT,)
    module: nn.Module

    def adopt(self, module: nn.Module) -> None:
        """Keep the module."""
        self.module = module

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return the module's output, passed through its point."""
        output: Tensor = self.module(*args, **kwargs)
        moved: Tensor = self.point("act_out")(output)
        return moved
