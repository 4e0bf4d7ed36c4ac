"""Classes whose modules run their forward step by step, made from the classes of a model."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Mapping
from typing import ClassVar, Final, Protocol

import torch
from torch import nn

from tico_modules import Edit, children

STEPS: Final = "quant_steps"
"""The name of the child that holds the points of a module's steps."""

_WHY_NOT_COMPILED: Final = "its steps are found while it runs; compile what torch.export makes of it instead"


class Forward(Protocol):
    """The forward of a class of modules."""

    def __call__(self, module: nn.Module, /, *args: object, **kwargs: object) -> object:
        """Return what `module` gives."""


class RunsSteps(Protocol):
    """The child of a module that runs the module's forward."""

    def run(
        self, forward: Forward, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        """Return what `forward` of the module's own class returns, step by step."""


class Stepped:
    """What the class of a module with step points has beside its own class."""

    float_class: ClassVar[type[nn.Module]]

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Return what makes a module of the same kind in another process."""
        return _empty, (type(self).float_class,), vars(self)


_MADE: Final[dict[type[nn.Module], type[nn.Module]]] = {}


def stepped(kind: type[nn.Module]) -> type[nn.Module]:
    """Return `kind` with a forward that lets its steps pass through the points in the child `quant_steps`."""
    if kind not in _MADE:
        _MADE[kind] = _make(kind)
    return _MADE[kind]


def _make(kind: type[nn.Module]) -> type[nn.Module]:
    plain: Forward = kind.forward

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        steps: RunsSteps = getattr(self, STEPS)
        return steps.run(plain, self, args, kwargs)

    # The compiler can't follow how steps are found. Its import takes a second, and adds warning filters.
    with warnings.catch_warnings():
        uncompiled: object = torch.compiler.disable(forward, reason=_WHY_NOT_COMPILED)  # type: ignore[no-untyped-call]
    own: dict[str, object] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "float_class": kind,
        "forward": uncompiled,
    }
    made: type[nn.Module] = types.new_class(
        kind.__name__, (Stepped, kind), exec_body=lambda body: body.update(own)
    )
    return made


def code_of(forward: object) -> types.CodeType | None:
    """Return the code of `forward` without what decorators have put around it; None if it is not Python's."""
    plain: object = inspect.unwrap(forward) if callable(forward) else None
    return plain.__code__ if isinstance(plain, types.FunctionType) else None


def why_not_stepped(module: nn.Module) -> str | None:
    """Return why the steps of `module` cannot be found, or None."""
    if "forward" in vars(module):
        return "its forward was replaced on the instance, so that its steps cannot be found"
    if code_of(type(module).forward) is None:
        return "its forward is not written in Python, so that its steps cannot be found"
    if STEPS in {*children(module), *vars(module), *dir(type(module))}:
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
