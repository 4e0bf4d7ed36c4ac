"""What is no tensor in a model, as far as it can be told: its modules of torch.nn and their settings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final

from torch import nn

from tico_config import ArtifactError, Found, Problem
from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.layout import Layout
from tico_modules._tree.module_tree import children, named_modules

_CLASS: Final = "class"
# What makes no difference in evaluation mode.
_INDIFFERENT: Final = ("inplace", "momentum", "training")
_SETTINGS = (bool, float, int, str, tuple, list, type(None))


def describe_structure(model: nn.Module) -> dict[str, dict[str, str]]:
    """Return class and settings, as text, of the modules of torch.nn by path; of other leaves the class."""
    return {
        path: _describe(module)
        for path, module in named_modules(model)
        if not _is_own(module) and (_torch_class(module) or _is_leaf(module))
    }


def _is_leaf(module: nn.Module) -> bool:
    """Tell whether `module` holds no others but what stands beside them."""
    held = children(module).values()
    return all(isinstance(each, RestorableModule) and each.stands_beside for each in held)


def require_structure(saved: Layout, model: nn.Module) -> None:
    """Refuse a model with another module of torch.nn, or one with other settings, where `saved` has one.

    Settings that one of the two does not know, because it is of another version of torch, count nothing.

    Raises:
        ArtifactError: with every difference.
    """
    current = dict(named_modules(model))
    problems = [
        problem
        for path, entry in saved.children()
        if path in current
        for problem in _find_differences(path, entry, current[path])
    ]
    if problems:
        raise ArtifactError(*problems)


def _is_own(module: nn.Module) -> bool:
    """Tell whether the class is one of this library, such as a point; what is saved says more of these."""
    return isinstance(module, RestorableModule) or type(module).__module__.startswith("tico_")


def _describe(module: nn.Module) -> dict[str, str]:
    name = _torch_class(module)
    if not name:
        return {_CLASS: type(module).__name__}
    if "Dropout" in name:
        return {_CLASS: nn.Identity.__name__}
    settings: Mapping[str, object] = vars(module)
    return {_CLASS: name} | {
        name: repr(value)
        for name, value in settings.items()
        if not name.startswith("_") and name not in _INDIFFERENT and isinstance(value, _SETTINGS)
    }


def _torch_class(module: nn.Module) -> str:
    """Return the name of the nearest class of torch.nn that `module` is of; empty for one of its own kind."""
    kinds = (kind for kind in type(module).__mro__ if kind is not nn.Module)
    return next((kind.__name__ for kind in kinds if kind.__module__.startswith("torch.nn.")), "")


def _find_differences(path: str, saved: Layout, module: nn.Module) -> Iterator[Problem]:
    found = _describe(module)
    known = {name: saved.text(name) for name in saved.values}
    of_torch = vars(nn).keys() & {known.get(_CLASS), found[_CLASS]}
    if known.get(_CLASS) != found[_CLASS]:
        if of_torch:  # classes of one's own may have been renamed
            yield _make_problem(path, _CLASS, f"a {found[_CLASS]}", f"a {known.get(_CLASS)}")
        return
    for name in sorted(known.keys() & found.keys() - {_CLASS}):
        if known[name] != found[name]:
            yield _make_problem(path, name, found[name], known[name])


def _make_problem(path: str, field: str, found: str, expected: str) -> Problem:
    remedy = "pass a float model made as the one that was saved"
    expected = f"{expected}, as in the saved model"
    return Problem(module=path, field=field, value=Found(found), expected=expected, remedy=remedy)
