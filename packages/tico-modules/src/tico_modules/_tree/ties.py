"""Modules that hold the same weight."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import children, named_modules, own_tensor

_TIES: Final = "tie_word_embeddings"


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
    _keep_ties(model, edit, lambda module, end, other: _has(module, end) and _has(module, other))


def drop_broken_ties(model: nn.Module, edit: Edit) -> None:
    """Let transformers models in `model` name no tie any more whose ends are two tensors now.

    Their config says then that embeddings are not tied, so that nothing ties them again.
    """
    for module in _keep_ties(model, edit, _is_whole):
        config: object = getattr(module, "config", None)
        if getattr(config, _TIES, None) is True:
            edit.set_attribute(config, _TIES, False)


def _keep_ties(
    model: nn.Module, edit: Edit, keeps: Callable[[nn.Module, object, object], bool]
) -> list[nn.Module]:
    """Keep the ties that `keeps` says; return the modules that have lost one."""
    changed: dict[int, nn.Module] = {}
    for _, module in named_modules(model):
        for attribute in ("_tied_weights_keys", "all_tied_weights_keys"):
            named: object = getattr(module, attribute, None)
            pairs = named.items() if isinstance(named, dict) else ()
            kept = {end: other for end, other in pairs if keeps(module, end, other)}
            if len(kept) < len(pairs):
                edit.set_attribute(module, attribute, kept)
                changed[id(module)] = module
    return list(changed.values())


def _is_whole(model: nn.Module, end: object, other: object) -> bool:
    one, two = (_tensor(model, name) for name in (end, other))
    return one is None or two is None or one is two


def _tensor(model: nn.Module, name: object) -> Tensor | None:
    owner, last = _owner(model, name)
    return None if owner is None else own_tensor(owner, last)


def _owner(model: nn.Module, name: object) -> tuple[nn.Module | None, str]:
    *path, last = str(name).split(".")
    owner: nn.Module | None = model
    for part in path:
        owner = None if owner is None else children(owner).get(part)
    return owner, last


def _has(model: nn.Module, name: object) -> bool:
    """Tell whether `model` has the tensor `name`; a pattern may stand for any, and so may a module."""
    owner, last = _owner(model, name)
    return owner is None or last in children(owner) or own_tensor(owner, last) is not None
