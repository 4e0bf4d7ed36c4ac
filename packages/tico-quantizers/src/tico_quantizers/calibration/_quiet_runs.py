"""Runs of a module besides those of the user, whose hooks are not called, and whose counters are put back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_modules import PackedWeight, RestorableModule, named_modules
from tico_quantizers.calibration._hooks import is_own
from tico_quantizers.calibration._snapshots import revision

_HOOKS = ("_forward_pre_hooks", "_forward_hooks", "_backward_pre_hooks", "_backward_hooks")


@contextmanager
def quiet_runs(root: nn.Module, *, with_hooks: bool = False) -> Iterator[None]:
    """Let `root` be run unnoticed: without hooks but those of algorithms, unless it is `with_hooks`.

    Afterwards hooks, buffers and attributes of its modules are what they were.

    >>> model, calls = nn.ReLU(), []
    >>> handle = model.register_forward_hook(lambda *call: calls.append(call))
    >>> with quiet_runs(model):
    ...     output = model(torch.ones(1))
    >>> len(calls), len(model._forward_hooks)
    (0, 1)
    """
    modules = [module for _, module in named_modules(root)]
    states = [
        _State.of(module) for module in modules if not isinstance(module, PackedWeight | RestorableModule)
    ]
    before = [(own, dict(own)) for module in modules for own in _all_hooks_of(module)]
    try:
        for own, hooks in () if with_hooks else before:
            for key in [key for key, hook in hooks.items() if not is_own(hook)]:
                del own[key]
        yield
    finally:
        for own, hooks in before:
            _put_back(own, hooks)
        for state in states:
            state.restore()


def has_foreign_hooks(root: nn.Module, *, below: bool = True) -> bool:
    """Return whether `root`, or a module `below` it, has a hook that is not one of an algorithm."""
    modules = [module for _, module in named_modules(root)] if below else [root]
    hooks = (own for module in modules for own in _all_hooks_of(module))
    return not all(is_own(hook) for own in hooks for hook in own.values())


def _all_hooks_of(module: nn.Module) -> list[dict[int, object]]:
    return [getattr(module, name) for name in _HOOKS]


def _put_back(own: dict[int, object], before: Mapping[int, object]) -> None:
    """Give `own` the hooks that it had, in their order, then those that algorithms have given it since.

    A model that has set hooks of its own will do so again: its mark that it has is put back too.
    """
    now = dict(own)
    if now == before:
        return
    own.clear()
    own.update({key: hook for key, hook in before.items() if not is_own(hook) or key in now})
    own.update({key: hook for key, hook in now.items() if key not in before and is_own(hook)})


@attrs.frozen(eq=False)
class _State:
    """The attributes and buffers of a module; of buffers also the content."""

    module: nn.Module
    attributes: Mapping[str, object]
    buffers: Mapping[str, Tensor | None]
    contents: Mapping[str, tuple[int, Tensor]]

    @classmethod
    def of(cls, module: nn.Module) -> Self:
        buffers: dict[str, Tensor | None] = module._buffers
        stored = {name: buffer for name, buffer in buffers.items() if buffer is not None}
        contents = {name: (revision(buffer), buffer.detach().clone()) for name, buffer in stored.items()}
        return cls(module, dict(vars(module)), dict(buffers), contents)

    def restore(self) -> None:
        attributes: dict[str, object] = vars(self.module)
        for name in attributes.keys() - self.attributes.keys():
            del attributes[name]
        attributes.update(self.attributes)
        own: dict[str, Tensor | None] = self.module._buffers
        for name in own.keys() - self.buffers.keys():
            del own[name]
        own.update(self.buffers)
        for name, (number, content) in self.contents.items():
            buffer = own[name]
            if buffer is not None and revision(buffer) != number:
                with torch.inference_mode(mode=buffer.is_inference()), torch.no_grad():
                    buffer.copy_(content)
