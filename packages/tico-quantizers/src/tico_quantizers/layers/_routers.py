"""Routers of mixtures of experts, which stay in float unless they are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import nn

from tico_modules import child_path, children, named_modules, own_tensor
from tico_quantizers.layers._matrix import as_layer

ROUTERS: Final[Mapping[str, str]] = {
    **dict.fromkeys(("gate", "router", "gating"), "chooses the experts of a token"),
    "shared_expert_gate": "says how much the shared expert counts",
}
"""What modules of these names do where they stand beside experts.

A router has few weights, and an error in one may send a token to other experts, which no error in the weights
of these makes up for.
"""


def routers_in(model: nn.Module) -> dict[str, str]:
    """Return the paths of all modules in `model` that hold weights of a router, with what it does.

    A router has a name of `ROUTERS` and stands in one module with experts: with something that has "expert"
    in its name, or with a parameter of three axes that holds one matrix for each of its outputs.

    >>> block = nn.ModuleDict({"gate": nn.Linear(4, 2), "experts": nn.ModuleList([nn.Linear(4, 4)] * 2)})
    >>> routers_in(nn.Sequential(block))
    {'0.gate': 'chooses the experts of a token'}
    """
    found: dict[str, str] = {}
    for path, module in named_modules(model):
        for name, child in children(module).items():
            if name in ROUTERS and _stands_beside_experts(child, children(module)):
                inside = named_modules(child)
                below = (part for part, owner in inside if own_tensor(owner, "weight") is not None)
                start = child_path(path, name)
                found |= {f"{start}.{part}" if part else start: ROUTERS[name] for part in below}
    return found


def _stands_beside_experts(router: nn.Module, siblings: Mapping[str, nn.Module]) -> bool:
    if any("expert" in name.lower() for name in siblings if name not in ROUTERS):
        return True
    outputs = {len(each) for each in router.parameters() if each.ndim == 2}
    modules = [each for name, child in siblings.items() if name not in ROUTERS for each in child.modules()]
    own = (each for module in modules if as_layer(module) is None for each in module._parameters.values())
    return any(each is not None and each.ndim == 3 and len(each) in outputs for each in own)
