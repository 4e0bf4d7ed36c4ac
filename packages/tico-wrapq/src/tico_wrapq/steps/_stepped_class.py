"""Classes whose modules run their forward step by step, made from the classes of a model."""

from __future__ import annotations

import functools
import inspect
import types
import warnings
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import ClassVar, Final, Protocol

import torch
from torch import Tensor, nn

from tico_modules import Edit, children

STEPS: Final = "quant_steps"
"""The name of the child that holds the points of a module's steps."""

_WHY_NOT_COMPILED: Final = "its steps are found while it runs; compile what torch.export makes of it instead"


class Forward(Protocol):
    """The forward of a class of modules."""

    def __call__(self, module: nn.Module, /, *args: object, **kwargs: object) -> object:
        """Return what `module` gives."""


class RunsSteps(Protocol):
    """The child of a module that runs the module's forward, and has integers in the place of its weights."""

    def read_weight(self, name: str) -> Tensor:
        """Return the weight that stood under `name`."""

    def run(
        self, forward: Forward, module: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> object:
        """Return what `forward` of the module's own class returns, step by step."""


_RUNNING: Final[ContextVar[frozenset[int]]] = ContextVar("running", default=frozenset())
"""The modules whose own forward runs."""


def _count(self: nn.Module) -> int:
    return len(children(self).keys() - {STEPS})


def _iterate(self: nn.Module) -> Iterator[nn.Module]:
    return (child for name, child in children(self).items() if name != STEPS)


# A list of modules counts its children and goes through them: the points are none of them.
_LIST_METHODS: Final[Mapping[str, object]] = {"__len__": _count, "__iter__": _iterate}


class Stepped(nn.Module):
    """What the class of a module with step points has beside its own class."""

    float_class: ClassVar[type[nn.Module]]
    weight_names: ClassVar[tuple[str, ...]]

    def __reduce_ex__(self, protocol: object) -> tuple[object, ...]:
        """Return what makes a module of the same kind in another process."""
        return _empty, (type(self).float_class, type(self).weight_names), vars(self)

    def named_children(self) -> Iterator[tuple[str, nn.Module]]:
        """Yield the children; while the module's own forward runs, those that it knows."""
        running = id(self) in _RUNNING.get()
        return (each for each in super().named_children() if not (running and each[0] == STEPS))


_MADE: Final[dict[tuple[type[nn.Module], tuple[str, ...]], type[nn.Module]]] = {}


def stepped(kind: type[nn.Module], weights: tuple[str, ...] = ()) -> type[nn.Module]:
    """Return `kind` with a forward that lets its steps pass through the points in the child `quant_steps`.

    `weights` are the names of the parameters in whose place the child has integers.
    """
    key = kind, weights
    if key not in _MADE:
        _MADE[key] = _make(kind, weights)
    return _MADE[key]


def _make(kind: type[nn.Module], weights: tuple[str, ...]) -> type[nn.Module]:
    plain: Forward = kind.forward

    @functools.wraps(plain)
    def forward(self: nn.Module, *args: object, **kwargs: object) -> object:
        steps: RunsSteps = getattr(self, STEPS)
        token = _RUNNING.set(_RUNNING.get() | {id(self)})
        try:
            return steps.run(plain, self, args, kwargs)
        finally:
            _RUNNING.reset(token)

    # The compiler can't follow how steps are found. Its import takes a second, and adds warning filters.
    with warnings.catch_warnings():
        uncompiled: object = torch.compiler.disable(forward, reason=_WHY_NOT_COMPILED)  # type: ignore[no-untyped-call]
    own: dict[str, object] = {
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "float_class": kind,
        "weight_names": weights,
        "forward": uncompiled,
        **(_LIST_METHODS if issubclass(kind, nn.Sequential | nn.ModuleList) else {}),
        **{name: property(functools.partial(_read, name)) for name in weights},
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
    # A skeleton may be of the class of a converted model.
    _become(module, stepped(_float_class(kind)))


def take_weights(module: nn.Module, names: tuple[str, ...], edit: Edit) -> None:
    """Let the child `quant_steps` of `module` stand for its parameters `names`."""
    kind = type(module)
    parameters: dict[str, nn.Parameter | None] = module._parameters
    for name in names:
        edit.drop(parameters, name)
    edit.on_undo(functools.partial(_become, module, kind))
    _become(module, stepped(_float_class(kind), names))


def leave(module: nn.Module, edit: Edit) -> None:
    """Let `module` be of its own class again, without the child `quant_steps`."""
    modules: dict[str, nn.Module | None] = module._modules
    edit.drop(modules, STEPS)
    kind = type(module)
    edit.on_undo(functools.partial(_become, module, kind))
    _become(module, _float_class(kind))


def _float_class(kind: type[nn.Module]) -> type[nn.Module]:
    return kind.float_class if issubclass(kind, Stepped) else kind


def _read(name: str, module: nn.Module) -> Tensor:
    steps: RunsSteps = getattr(module, STEPS)
    return steps.read_weight(name)


def _become(module: nn.Module, kind: type[nn.Module]) -> None:
    module.__class__ = kind


def _empty(kind: type[nn.Module], weights: tuple[str, ...] = ()) -> nn.Module:
    made = stepped(kind, weights)
    new: nn.Module = made.__new__(made)
    return new
