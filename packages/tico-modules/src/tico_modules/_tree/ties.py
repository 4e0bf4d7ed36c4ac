"""Modules that hold the same weight."""

from __future__ import annotations

from torch import nn

from tico_modules._tree.module_tree import named_modules, own_tensor


def find_tied_paths(model: nn.Module) -> dict[str, str]:
    """Return a mapping from the path of each module with a shared weight to the path of another that has it.

    All but the first are mapped to the first, and the first to the second.
    """
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for path, module in named_modules(model):
        weight = own_tensor(module, "weight")
        if weight is None:
            continue
        if id(weight) in first:
            tied[path] = first[id(weight)]
            tied.setdefault(first[id(weight)], path)
        first.setdefault(id(weight), path)
    return tied
