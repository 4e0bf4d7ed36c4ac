"""Classes whose modules run their forward step by step, made from the classes of a model."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from types import CodeType
from typing import ClassVar, Final, Protocol

from torch import nn

from tico_modules import Edit, children
STEPS: Final = "quant_steps"
"""The name of the child that holds the points of a module's steps."""


class RunsSteps(Protocol):
    """The child of a module that runs the module's forward."""

    def run(
        self,
        forward: Callable[..., object],
        module: nn.Module,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
    ) -> object:
        """Return what `forward` of the module's own class returns, step by step."""


class Stepped:
    """What the class of a module with step points has beside its own class."""

    float_class: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Return what makes a module of the same kind in another process."""
        return _empty, (type(self).float_class,), vars(self)


@functools.lru_cache(maxsize=None)
def stepped(kind: type[nn.Module]) -> type[nn.Module]:
    """Return `kind` with a forward that lets its steps pass through the points in the child `quant_steps`."""
    plain: Callable[..., object] = kind.forward

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        steps: RunsSteps = getattr(self, STEPS)
        return steps.run(plain, self, args, kwargs)

    own: dict[str, object] = {"float_class": kind, "forward": forward, "__module__": kind.__module__}
    own["__qualname__"] = kind.__qualname__
    return type(kind)(kind.__name__, (Stepped, kind), own)


def code_of(forward: Callable[..., object]) -> CodeType | None:
    """Return the code of `forward` without what decorators have put around it; None if it is not Python's."""
    plain: object = inspect.unwrap(forward)
    return plain.__code__ if inspect.isfunction(plain) else None


def why_not_stepped(module: nn.Module) -> str | None:
    """Return why the steps of `module` cannot be found, or None."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance, so that its steps cannot be found"
    if code_of(type(module).forward) is None:
        return "its forward is not written in Python, so that its steps cannot be found"
    if STEPS in children(module) or hasattr(type(module), STEPS):
        return f"it has something called {STEPS}, the name under which the points of steps stand"
    return None


def run_by_steps(module: nn.Module, steps: nn.Module, edit: Edit) -> None:
    """Let the child `steps` run the forward of `module`, in place."""
    modules: dict[str, nn.Module | None] = module._modules
    edit.put(modules, STEPS, steps)
    kind = type(module)
    edit.on_undo(functools.partial(_become, module, kind))
    _become(module, stepped(kind))


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _empty(kind: type[nn.Module]) -> nn.Module:
    made = stepped(kind)
    new: nn.Module = made.__new__(made)
    return new
