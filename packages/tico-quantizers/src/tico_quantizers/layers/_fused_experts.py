"""Modules that keep the weights of all their experts in parameters of three axes, told by what they do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal, TypeAlias

import attrs
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_modules import RestorableModule, call_as
from tico_quantizers.layers._expert_calls import ExpertStack, Multiply, eager_forward
from tico_quantizers.layers._matrix import as_layer
from tico_quantizers.layers._own_forward import has_own_forward

Routing: TypeAlias = Literal["chosen", "sorted", "all"]
_ROWS: Final = 3
"""How many rows a trial has for each expert."""
_FOREIGN_ERRORS: Final = (
    *(RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError, ArithmeticError),
)


@attrs.frozen
class FusedExperts:
    """How a module keeps its experts.

    Attributes:
        count: the number of experts.
        transposed: of each parameter that holds weights of experts whether it is (experts, inputs, outputs).
        routing: which rows go to which experts. ``"chosen"``: the module is called with rows, the numbers of
            the experts that each of them goes to, and how much each of these counts. ``"sorted"``: it is
            called with equally many rows for each expert, one expert after the other, those that it is not
            meant for being zero. ``"all"``: every row goes to every expert.
    """

    count: int
    transposed: Mapping[str, bool]
    routing: Routing


def fused_experts(module: nn.Module) -> FusedExperts | None:
    """Return how `module` keeps its experts; None if it has no parameter of three axes, or is something else.

    Its forward is run on a few rows with something in the place of the parameters that notes what each expert
    is multiplied by. So nothing else can happen to a weight, and names do not matter. What the module has on
    the meta device is ones in this run.

    >>> class Experts(nn.Module):
    ...     def __init__(self):
    ...         super().__init__()
    ...         self.weights = nn.Parameter(torch.ones(2, 3, 4))
    ...
    ...     def forward(self, x):
    ...         return torch.bmm(x.view(2, -1, 3), self.weights)
    >>> fused_experts(Experts())
    FusedExperts(count=2, transposed={'weights': True}, routing='sorted')
    """
    stacks = _stacks(module)
    if not stacks or has_own_forward(module) or as_layer(module) is not None:
        return None
    sizes = dict.fromkeys(size for stack in stacks.values() for size in stack.shape[1:])
    trials = (_Trial(module, stacks, size, chosen) for chosen in (True, False) for size in sizes)
    return next((found for found in (trial.run() for trial in trials) if found is not None), None)


def _stacks(module: nn.Module) -> dict[str, Tensor]:
    """Return the parameters of `module` that may hold a weight for each of several experts."""
    own: dict[str, nn.Parameter | None] = {} if isinstance(module, RestorableModule) else module._parameters
    given = {name: each for name, each in own.items() if each is not None and not is_lazy(each)}
    found = {
        name: _with_values(each.detach())
        for name, each in given.items()
        if each.is_floating_point() and each.ndim == 3
    }
    counts = {len(each) for each in found.values()}
    return found if len(counts) == 1 and counts != {1} else {}


def _with_values(tensor: Tensor) -> Tensor:
    """Return `tensor`; ones that take no memory in its place on the meta device."""
    return torch.ones((), dtype=tensor.dtype).expand(tensor.shape) if tensor.is_meta else tensor


@attrs.frozen(eq=False)
class _Trial:
    """A call of a module with rows of `size` values, which says what is multiplied by which weight."""

    module: nn.Module
    stacks: Mapping[str, Tensor]
    size: int
    chosen: bool
    seen: dict[str, dict[int, tuple[bool, int]]] = attrs.field(factory=dict)

    def run(self) -> FusedExperts | None:
        stacks = {name: ExpertStack(each, self._noting(name, each)) for name, each in self.stacks.items()}
        tensors = [*self.module._parameters.items(), *self.module._buffers.items()]
        meta = {name: _with_values(each) for name, each in tensors if each is not None and each.is_meta}
        held = {**meta, **stacks}
        parts = {name: quiet(child) for name, child in self.module.named_children()}
        kind = type(self.module)
        try:
            with torch.no_grad():
                call_as(kind, self.module, {**held, "_modules": parts}, self._args(), {}, eager_forward(kind))
        except _FOREIGN_ERRORS:
            return None
        return self._found()

    def _found(self) -> FusedExperts | None:
        """Return what the calls that were seen tell; None if they are not those of experts."""
        wanted = {0, self._count - 1} if self.chosen else set(range(self._count))
        calls = [self.seen.get(name, {}) for name in self.stacks]
        ways = [{swapped for swapped, _ in seen.values()} for seen in calls]
        rows = {count for seen in calls for _, count in seen.values()}
        alike = len(rows) == 1 and all(len(way) == 1 for way in ways)
        if not alike or any(seen.keys() != wanted for seen in calls):
            return None
        per_expert = rows.pop()
        routing: Routing = "chosen" if self.chosen else "sorted" if per_expert == _ROWS else "all"
        if per_expert != {"chosen": 1, "sorted": _ROWS, "all": _ROWS * self._count}[routing]:
            return None
        transposed = {name: way.pop() for name, way in zip(self.stacks, ways, strict=True)}
        return FusedExperts(self._count, transposed, routing)

    @property
    def _count(self) -> int:
        return len(next(iter(self.stacks.values())))

    def _args(self) -> tuple[Tensor, ...]:
        like = next(iter(self.stacks.values()))
        if not self.chosen:
            return (like.new_ones(_ROWS * self._count, self.size),)
        numbers = torch.tensor([[0], [self._count - 1]], device=like.device)
        return like.new_ones(2, self.size), numbers, like.new_ones(2, 1)

    def _noting(self, name: str, stack: Tensor) -> Multiply:
        seen = self.seen.setdefault(name, {})

        def multiply(number: int, x: Tensor, swapped: bool) -> Tensor:
            inputs, outputs = stack.shape[1:] if swapped else stack.shape[:0:-1]
            call = swapped, x.shape[:-1].numel()
            if x.shape[-1] != inputs or seen.setdefault(number, call) != call:
                raise TypeError(f"rows of {x.shape[-1]} values times weights of {inputs}")
            return x.new_ones(*x.shape[:-1], outputs)

        return multiply


def quiet(module: nn.Module) -> nn.Module:
    """Return what computes as `module` does, with the same parameters, and has no hooks."""
    kind = type(module)
    same = kind.__new__(kind)
    vars(same).update(vars(module))
    fresh = vars(nn.Module())
    vars(same).update({name: value for name, value in fresh.items() if "_hooks" in name})
    children: dict[str, nn.Module | None] = module._modules
    parts = {name: None if child is None else quiet(child) for name, child in children.items()}
    vars(same)["_modules"] = parts
    return same
