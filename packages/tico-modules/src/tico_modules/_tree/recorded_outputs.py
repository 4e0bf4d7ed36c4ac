"""Hooks of transformers that record hidden states and attentions, made before layers are replaced.

At the first request for them, transformers finds by their class the layers whose outputs it records, and
hooks them. A wrapper that replaces such a layer has another class, but takes over its hooks. So the hooks are
made before the wrappers, by the function of transformers. They are closures, which can't be pickled: each is
held by an object that can, and that makes it again.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol

from torch import nn

from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import named_modules

_INSTALLED = "_output_capturing_hooks_installed"
_CAPTURING = "transformers.utils.output_capturing"

_Hook = Callable[[nn.Module, tuple[object, ...], object], object]


class _Install(Protocol):
    def __call__(self, module: nn.Module, **settings: object) -> None:
        """Hook `module`."""


def record_outputs(model: nn.Module, edit: Edit) -> None:
    """Hook the layers of every transformers model in `model`, as its first `output_hidden_states` would."""
    capturing = sys.modules.get(_CAPTURING)
    install: Callable[[nn.Module], None] | None = getattr(capturing, "maybe_install_capturing_hooks", None)
    if install is None:
        return
    modules = [module for _, module in named_modules(model)]
    known = [(module, frozenset(module._forward_hooks), _is_marked(module)) for module in modules]
    edit.on_undo(_Removal(known))
    for module in modules:
        # Models around it that say the same, for causal language modeling say, hand the request on.
        if _records(module) and not any(_records(below) for path, below in named_modules(module) if path):
            install(module)
    for module, before, _ in known:
        for new in module._forward_hooks.keys() - before:
            module._forward_hooks[new] = _as_picklable(module._forward_hooks[new])


def _records(module: nn.Module) -> bool:
    return bool(getattr(type(module), "_can_record_outputs", None))


def _is_marked(module: nn.Module) -> bool:
    return _INSTALLED in vars(module)


def _as_picklable(hook: _Hook) -> _Hook:
    """Return what does the same and can be pickled, or `hook` itself if its settings are not known."""
    code: object = getattr(hook, "__code__", None)
    names: tuple[str, ...] = getattr(code, "co_freevars", ())
    cells: tuple[object, ...] = getattr(hook, "__closure__", None) or ()
    found = {name: getattr(cell, "cell_contents", None) for name, cell in zip(names, cells, strict=True)}
    settings: dict[str, object] = {
        name: value for name, value in found.items() if isinstance(value, str | int)
    }
    return RecordingHook(settings, hook) if "key" in settings else hook


class RecordingHook:
    """A hook of transformers that records the output of a layer, and the settings that it is made from."""

    def __init__(self, settings: dict[str, object], hook: _Hook) -> None:
        self._settings = settings
        self._hook = hook

    def __call__(self, module: nn.Module, args: tuple[object, ...], output: object) -> object:
        """Record `output`, if somebody asked for it."""
        return self._hook(module, args, output)

    def __reduce__(self) -> tuple[Callable[[dict[str, object]], RecordingHook], tuple[dict[str, object]]]:
        """Return how to make the hook again from its settings."""
        return _make_hook, (self._settings,)


def _make_hook(settings: dict[str, object]) -> RecordingHook:
    """Return the hook with these `settings`, made by the function of transformers."""
    from transformers.utils import output_capturing

    install: _Install = getattr(output_capturing, "install_output_capuring_hook")  # noqa: B009
    layer = nn.Identity()
    install(layer, **settings)
    (hook,) = layer._forward_hooks.values()
    return RecordingHook(settings, hook)


class _Removal:
    """Removes every hook that was made after the known ones."""

    def __init__(self, known: list[tuple[nn.Module, frozenset[int], bool]]) -> None:
        self._known = known

    def __call__(self) -> None:
        for module, hooks, marked in self._known:
            for new in set(module._forward_hooks) - hooks:
                del module._forward_hooks[new]
                module._forward_hooks_with_kwargs.pop(new, None)
                module._forward_hooks_always_called.pop(new, None)
            if _is_marked(module) and not marked:
                delattr(module, _INSTALLED)
