"""Fused experts with a layer for each expert, which reads what the expert is multiplied by."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import final

import torch
from torch import Tensor, nn

from tico_modules import QuantizedLinear, call_as, carry_over, children, parameter, read_only
from tico_quantizers.calibration._calls import tensor_leaves
from tico_quantizers.calibration._hooks import is_heard, observation
from tico_quantizers.layers import ExpertLinear, ExpertStack, FusedExperts, eager_forward, quiet


@final
class ExpertLayers(nn.Module):
    """Stands in for a module of fused experts while an algorithm works on it.

    For each parameter that holds a weight for each expert, it has a list of layers under the parameter's
    name, one for each expert. A call gives what the float module gives, bit for bit. Once some layers are
    integers, it gives what their weights give. If a layer has hooks, it is called with the rows that its
    expert is multiplied by, and gradients reach its output as they reach the outputs of the call.

    `real` (rows,) says which rows of the next call are no padding; the layers do not see the others. With
    `every_token` each layer sees all rows, whichever experts they are routed to, unless the rows come sorted
    by expert already.
    """

    real: Tensor | None = None

    def __init__(self, experts: nn.Module, about: FusedExperts, *, every_token: bool) -> None:
        super().__init__()
        attributes, fresh = vars(experts), {*vars(self)} - {"_parameters", "_buffers"}
        vars(self).update({name: value for name, value in attributes.items() if name not in fresh})
        self._modules.update(children(experts))
        self._original = (experts,)  # in a tuple: a module would become a child
        self._kind = type(experts)
        self.about = about
        self._every_token = every_token
        for name, transposed in about.transposed.items():
            layers = (ExpertLinear(self, name, each, transposed=transposed) for each in range(about.count))
            # Beside the parameter of that name, which a module's own `register_module` does not allow.
            self._modules[name] = nn.ModuleList(layers)
        carry_over(experts, self)

    @property
    def original(self) -> nn.Module:
        """The module that this one stands in for, with which it shares parameters and buffers."""
        return self._original[0]

    def layers(self, name: str) -> list[nn.Module]:
        """Return the layers of the experts whose weights are in the parameter `name`."""
        return list(children(children(self)[name]).values())

    def forward(self, *args: object, **kwargs: object) -> Tensor:
        """Return what the experts give."""
        real, self.real = self.real, None
        held = {name: self._held(name) for name in self.about.transposed}
        if not any(is_heard(layer) for name in held for layer in self.layers(name)):
            return call_as(self._kind, self, held, args, kwargs)
        with observation():  # what is there to see is shown below
            output = call_as(self._kind, self, held, args, kwargs)
        seen = self._show(real, args, kwargs)
        return output + (seen - seen.detach()).view(output.shape) if seen.requires_grad else output

    def _held(self, name: str) -> Tensor | None:
        """Return the parameter `name`, or what its layers have made of it."""
        layers, stack = self.layers(name), parameter(self, name)
        if stack is None or not any(isinstance(layer, QuantizedLinear) for layer in layers):
            return stack
        transposed = self.about.transposed[name]

        def read_one(number: int) -> Tensor:
            values = _values_of(layers[number]).to(stack.dtype)
            return values.T if transposed else values

        def read_all() -> Tensor:
            return torch.stack([read_one(number) for number in range(len(layers))])

        return read_only(read_all, stack.shape, stack.dtype, stack.device, read_one)

    def _show(self, real: Tensor | None, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
        """Call each layer with the rows of its expert, and return what the experts give, (rows, outputs).

        Rows that are padding give zeros.
        """
        forward, given = eager_forward(self._kind), [*tensor_leaves(args), *tensor_leaves(kwargs)]
        x, *rest = (each.detach().flatten(0, -2) for each in _in_order(given))
        kept = torch.ones(len(x), dtype=torch.bool, device=x.device) if real is None else self._spread(real)
        given = [x[kept], *(each[kept] for each in rest)]
        if self._every_token and self.about.routing == "chosen":
            given = [given[0], *self._to_all(*given[1:])]
        stacks = {name: self._listened(name) for name in self.about.transposed}
        parts = {name: quiet(child) for name, child in children(self).items() if name not in stacks}
        replaced = {**stacks, "_modules": parts}
        seen = call_as(self._kind, self, replaced, tuple(given), {}, forward)
        return seen if real is None else seen.new_zeros(len(x), seen.shape[-1]).index_put((kept,), seen)

    def _spread(self, real: Tensor) -> Tensor:
        return real.repeat(self.about.count) if self.about.routing == "sorted" else real

    def _to_all(self, numbers: Tensor, shares: Tensor) -> list[Tensor]:
        """Return numbers and shares by which every row goes to every expert.

        Experts that a row does not go to count as much as the mean of those that it does.
        """
        every = torch.arange(self.about.count, device=numbers.device).expand(len(numbers), -1)
        equal = shares.mean(-1, keepdim=True).expand(every.shape)
        return [every, equal.scatter(1, numbers, shares)]

    def _listened(self, name: str) -> ExpertStack:
        stack, layers = parameter(self, name), self.layers(name)
        if stack is None:
            raise AttributeError(name)
        return ExpertStack(stack.detach(), partial(_call, layers))


def _values_of(layer: nn.Module) -> Tensor:
    match layer:
        case QuantizedLinear():
            return layer.packed.dequantize()
        case ExpertLinear():
            return layer.weight
        case _:
            raise TypeError(type(layer))


def _call(layers: list[nn.Module], number: int, x: Tensor, transposed: bool) -> Tensor:
    output: Tensor = layers[number](x)
    return output


def _in_order(given: list[Tensor]) -> list[Tensor]:
    """Return rows, numbers of experts and shares in this order, in which forwards take them, or rows alone.

    Implementations give them other names, so they are told by what they hold.
    """
    numbers = [each for each in given if not each.is_floating_point()]
    floats = [each for each in given if each.is_floating_point()]
    if not numbers:
        return floats
    shares = next(each for each in reversed(floats) if each.shape == numbers[0].shape)
    return [next(each for each in floats if each is not shares), numbers[0], shares]
