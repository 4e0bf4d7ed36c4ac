"""Modules that hold the same weight."""

from __future__ import annotations

from torch import nn

from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import children, named_modules, own_tensor


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


def drop_stale_ties(model: nn.Module, edit: Edit) -> None:
    """Let transformers models in `model` name no tie any more whose ends are not both there.

    Such a model names the tensors that it ties to each other, ``lm_head.weight`` for example. Integer layers
    have no such tensor, and share what they hold without being told to.
    """
    for _, module in named_modules(model):
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            named: object = getattr(module, attribute, None)
            pairs = named.items() if isinstance(named, dict) else ()
            kept = {end: other for end, other in pairs if _has(module, end) and _has(module, other)}
            if len(kept) < len(pairs):
                edit.set_attribute(module, attribute, kept)


def _has(model: nn.Module, name: object) -> bool:
    """Tell whether `model` has the tensor `name`; a pattern may stand for any, and so may a module."""
    *path, last = str(name).split(".")
    owner: nn.Module | None = model
    for part in path:
        owner = None if owner is None else children(owner).get(part)
    return owner is None or last in children(owner) or own_tensor(owner, last) is not None
