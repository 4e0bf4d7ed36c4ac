"""Hooks of transformers that record hidden states and attentions, made before layers are replaced.

At the first request for them, transformers finds by their class the layers whose outputs it records, and
hooks them. A wrapper that replaces such a layer has another class, but takes over its hooks. So the hooks are
made before the wrappers, by the function of transformers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import nn

from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import named_modules

_INSTALLED = "_output_capturing_hooks_installed"


def record_outputs(model: nn.Module, edit: Edit) -> None:
    """Hook the layers of every transformers model in `model`, as its first `output_hidden_states` would."""
    capturing = sys.modules.get("transformers.utils.output_capturing")
    install: Callable[[nn.Module], None] | None = getattr(capturing, "maybe_install_capturing_hooks", None)
    if install is None:
        return
    modules = [module for _, module in named_modules(model)]
    edit.on_undo(
        _Removal([(module, frozenset(module._forward_hooks), _is_marked(module)) for module in modules])
    )
    for module in modules:
        # Models around it that say the same, for causal language modeling say, hand the request on.
        if _records(module) and not any(_records(below) for path, below in named_modules(module) if path):
            install(module)


def _records(module: nn.Module) -> bool:
    return bool(getattr(type(module), "_can_record_outputs", None))


def _is_marked(module: nn.Module) -> bool:
    return _INSTALLED in vars(module)


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
