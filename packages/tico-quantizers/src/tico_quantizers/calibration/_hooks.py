"""The hooks by which algorithms watch a model."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Generic, Protocol, TypeAlias, final

import attrs
from torch import nn
from torch.utils.hooks import RemovableHandle
from typing_extensions import ParamSpec

from tico_modules import named_modules
from tico_quantizers.calibration._compiled_calls import require_eager_call

P = ParamSpec("P")
_OBSERVING = ContextVar("observing", default=False)


def is_observing() -> bool:
    """Return whether the action of a `Hook` runs, so that what happens is no part of the model."""
    return _OBSERVING.get()


@contextmanager
def observation() -> Iterator[None]:
    """Let what happens in the context be no part of the model."""
    token = _OBSERVING.set(True)
    try:
        yield
    finally:
        _OBSERVING.reset(token)


class Watcher(Protocol):
    """Says whether calls count; a `Calibration` is one."""

    @property
    def watching(self) -> bool:
        """Whether calls count now."""


@final
@attrs.frozen(eq=False)
class Hook(Generic[P]):
    """Hands the calls of a module on to `action`, while `watcher` watches; always without a watcher.

    `action` is a bound method, or a `functools.partial` of one: a deep copy of the model then has hooks that
    call the copied object. A plain function would be the same one in both.
    """

    action: Callable[P, object]
    watcher: Watcher | None = None

    def before(self, module: nn.Module, *call: P.args, **_: P.kwargs) -> None:
        """Take what torch gives a hook before the call."""
        if self.watcher is None or self.watcher.watching:
            require_eager_call()
            with observation():
                self.action(*call, **_)

    def after(self, module: nn.Module, *call: P.args, **_: P.kwargs) -> object:
        """Take what torch gives a hook after the call; what `action` returns replaces the output."""
        if self.watcher is not None and not self.watcher.watching:
            return None
        with observation():
            return self.action(*call, **_)


Arguments: TypeAlias = tuple[tuple[object, ...], dict[str, object]]


@attrs.frozen(eq=False)
class _Change:
    """Hands the arguments of a module on to `action`, which may return others in their place."""

    action: Callable[[tuple[object, ...], dict[str, object]], Arguments | None]

    def before(
        self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]
    ) -> Arguments | None:
        with observation():
            return self.action(args, kwargs)


def before_call(
    module: nn.Module,
    action: Callable[[tuple[object, ...], dict[str, object]], object],
    watcher: Watcher | None = None,
    *,
    first: bool = False,
) -> RemovableHandle:
    """Call ``action(args, kwargs)`` before each call of `module`; `first` of all hooks, if that is said."""
    hook = Hook(action, watcher)
    return module.register_forward_pre_hook(hook.before, prepend=first, with_kwargs=True)


def changed_call(
    module: nn.Module, action: Callable[[tuple[object, ...], dict[str, object]], Arguments | None]
) -> RemovableHandle:
    """Call ``action(args, kwargs)`` before each call of `module`; its result, unless None, replaces them."""
    return module.register_forward_pre_hook(_Change(action).before, with_kwargs=True)


def after_call(
    module: nn.Module,
    action: Callable[[tuple[object, ...], dict[str, object], object], object],
    watcher: Watcher | None = None,
    *,
    first: bool = False,
    always: bool = False,
) -> RemovableHandle:
    """Call ``action(args, kwargs, output)`` after each call of `module`; its result replaces the output.

    `first` of all hooks, if that is said; with `always`, after calls that end with an exception too.
    """
    hook = Hook(action, watcher)
    return module.register_forward_hook(hook.after, prepend=first, with_kwargs=True, always_call=always)


def is_own(hook: object) -> bool:
    """Whether a hook of a module is one of an algorithm."""
    return isinstance(getattr(hook, "__self__", None), Hook | _Change)


def is_watched(module: nn.Module) -> bool:
    """Whether one of the hooks of `module` is that of an algorithm, which watches it."""
    return any(map(is_own, (*module._forward_pre_hooks.values(), *module._forward_hooks.values())))


def is_heard(module: nn.Module) -> bool:
    """Whether an algorithm listens to the calls of `module` now."""
    hooks = (*module._forward_pre_hooks.values(), *module._forward_hooks.values())
    owners: list[object] = [getattr(hook, "__self__", None) for hook in hooks]
    watchers = (owner.watcher for owner in owners if isinstance(owner, Hook))
    return any(watcher is not None and watcher.watching for watcher in watchers)


def remember_hooks(model: nn.Module) -> Callable[[], None]:
    """Return what removes every forward hook that `model` and its modules are given from now on.

    >>> model = nn.ReLU()
    >>> restore = remember_hooks(model)
    >>> handle = model.register_forward_hook(print)
    >>> restore()
    >>> len(model._forward_hooks)
    0
    """
    kept = [
        (module, set(module._forward_pre_hooks) | set(module._forward_hooks))
        for _, module in named_modules(model)
    ]

    def restore() -> None:
        for module, keys in kept:
            for key in {*module._forward_pre_hooks, *module._forward_hooks} - keys:
                for hooks in (getattr(module, name) for name in _HOOKS):
                    hooks.pop(key, None)

    return restore


_HOOKS = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)
