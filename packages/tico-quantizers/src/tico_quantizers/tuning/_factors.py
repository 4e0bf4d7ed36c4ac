"""Scales of integer layers, and weights of norms, as what steps of a descent can move."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import attrs
import torch
from torch import Tensor, nn

from tico_config import FloatFormat
from tico_modules import Edit, PackedWeight, QuantizedExperts, named_modules
from tico_quantizers.tuning._loans import Loan

_SMALLEST = torch.finfo(torch.float32).tiny
_LARGEST = torch.finfo(torch.float32).max


@attrs.frozen(eq=False, kw_only=True)
class Factor:
    """Tensor `name` of a module, each element times e to the power of an element of `logarithm`.

    Steps of one length then change each element by one share of itself, and no sign changes. Where all
    logarithms are 0, the tensor is `start`, bit for bit.

    Attributes:
        path: the path of the layer that the tensor belongs to.
        module: the module that holds it.
        name: its name there.
        start: the tensor that the module holds.
        logarithm: float32 of the shape of `start`, a leaf with derivatives.
        offset: a number that the module adds to the tensor, and that is multiplied with it.
    """

    path: str
    module: nn.Module
    name: str
    start: Tensor
    logarithm: Tensor
    offset: float = 0.0

    @classmethod
    def of(cls, path: str, module: nn.Module, name: str, *, offset: float = 0.0) -> Factor:
        """Return the factors of a tensor that `module` holds, all of them 1.

        Raises:
            UnsupportedError: it holds none of that name.
        """
        place = Loan(module=module, name=name, tensor=torch.empty(0)).place()
        start = place[name].detach()
        logarithm = torch.zeros_like(start, dtype=torch.float32).requires_grad_()
        return cls(path=path, module=module, name=name, start=start, logarithm=logarithm, offset=offset)

    def value(self) -> Tensor:
        """Return the tensor times the factors, in its own dtype; a scale stays a normal number."""
        start = self.start.to(torch.float32)
        moved = start + (start + self.offset) * self.logarithm.expm1()
        if isinstance(self.module, PackedWeight):
            moved = moved.clamp(_SMALLEST, _LARGEST)
        return moved.to(self.start.dtype)

    def loan(self) -> Loan:
        """Return what lets the module compute with `value`, which has derivatives by `logarithm`."""
        return Loan(module=self.module, name=self.name, tensor=self.value())

    def put(self, edit: Edit) -> None:
        """Give the module the value for good; undone with `edit`."""
        loan = self.loan()
        value, own = loan.tensor.detach(), loan.place()
        if isinstance(own[self.name], nn.Parameter):
            value = nn.Parameter(value, requires_grad=own[self.name].requires_grad)
        edit.put(own, self.name, value)

    def largest_change(self) -> float:
        """Return by which share of itself an element has changed at most.

        >>> Factor.of("norm", nn.LayerNorm(4), "weight").largest_change()
        0.0
        """
        if not self.logarithm.numel():
            return 0.0
        return float(self.logarithm.detach().expm1().abs().max())


def scales_of(model: nn.Module) -> tuple[tuple[Factor, ...], Mapping[str, str]]:
    """Return the scales of the integer layers of `model`, and why those of others cannot move, by path.

    A weight that several layers share is there once, at the first of them.

    >>> from tico_config import DType
    >>> from tico_modules import QuantizedLinear
    >>> model = nn.Sequential(QuantizedLinear.from_float(nn.Linear(8, 4), DType.uint(4), group_size=4))
    >>> factors, reasons = scales_of(model)
    >>> [(each.path, tuple(each.start.shape)) for each in factors], dict(reasons)
    ([('0', (4, 2))], {})
    """
    factors: list[Factor] = []
    reasons: dict[str, str] = {}
    for path, weight, holder in _weights(model):
        why = _reason(weight, holder)
        if why is None:
            factors.append(Factor.of(path, weight, "scale"))
        else:
            reasons[path] = why
    return tuple(factors), reasons


def _weights(model: nn.Module) -> Iterator[tuple[str, PackedWeight, nn.Module]]:
    """Yield each packed weight with the path of the layer that holds it, and that layer."""
    modules = dict(named_modules(model))
    experts = {path: module for path, module in modules.items() if isinstance(module, QuantizedExperts)}
    for path, module in modules.items():
        if isinstance(module, PackedWeight):
            above = path.removesuffix("packed").removesuffix(".")
            inside = (place for place in experts if path.startswith(f"{place}." if place else ""))
            place = next(inside, above)
            yield place, module, modules[place]


def _reason(weight: PackedWeight, holder: nn.Module) -> str | None:
    """Return why the scales of a weight cannot move, or None where they can."""
    if isinstance(holder, QuantizedExperts):
        return "derivatives do not reach the integers of experts in one parameter"
    if weight.format.super_block is not None:
        return "its scales are integers themselves, which share another scale"
    if isinstance(weight.dtype, FloatFormat):
        return f"its scales are stored as {weight.dtype} has them, which takes no small changes"
    return None
