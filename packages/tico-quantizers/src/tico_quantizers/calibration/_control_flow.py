"""What a pass of a model learns of the values of its tensors, by which it may decide what to call."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Protocol

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from tico_quantizers.calibration._calls import Call, Leaf, leaves_of, with_leaves

_DECIDING = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)
_READING = ("tolist", "numpy", "__array__")


class ValuesRead:
    """The numbers and shapes that follow from the values of tensors, in the order in which code asks.

    What is asked for while `is_inside` says so is left out.
    """

    def __init__(self, is_inside: Callable[[], bool]) -> None:
        self.values: list[object] = []
        self._is_inside = is_inside

    def watching(self) -> ExitStack:
        """Return a context in which values that are read are noted, from none on."""
        self.values = []
        stack = ExitStack()
        stack.enter_context(_Reads(self))
        stack.enter_context(_Decisions(self))
        return stack

    def note(self, value: object) -> None:
        """Note what was read."""
        if not self._is_inside():
            self.told(value)

    def told(self, value: object) -> None:
        """Note what code outside was told."""
        self.values.append(_told(value))


def _told(value: object) -> object:
    """Return what code outside of torch can tell of a result."""
    match value:
        case Tensor():
            return tuple(value.shape)
        case tuple():
            return tuple(map(_told, value))
        case bool() | int() | float() | complex():
            return value
        case _:
            return repr(value)


class _Function(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


class _Operation(_Function, Protocol):
    @property
    def tags(self) -> Sequence[torch.Tag]: ...


class _Decisions(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch leaves it untyped
    """Notes the results of operations whose output's value or shape depends on the values of tensors."""

    def __init__(self, read: ValuesRead) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # likewise
        self._read = read

    def __torch_dispatch__(
        self,
        func: _Operation,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result: object = func(*args, **(kwargs or {}))
        if any(tag in func.tags for tag in _DECIDING):
            self._read.note(result)
        return result


class _Reads(TorchFunctionMode):
    """Notes what leaves torch without an operation."""

    def __init__(self, read: ValuesRead) -> None:
        super().__init__()
        self._read = read

    def __torch_function__(
        self,
        func: _Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        result = func(*args, **(kwargs or {}))
        if getattr(func, "__name__", "") in _READING:
            self._read.note(result)
        return result


def form_of(call: Call) -> tuple[object, ...] | None:
    """Return all of the arguments of `call` but the values of tensors; None if one is an unknown object."""
    leaves = [_form(leaf) for leaf in leaves_of(call)]
    return None if None in leaves else (repr(with_leaves(call, [0] * len(leaves))), *leaves)


def _form(leaf: Leaf) -> tuple[object, ...] | None:
    match leaf:
        case Tensor():
            return leaf.dtype, leaf.device, tuple(leaf.shape)
        case None | bool() | int() | float() | str() | bytes():
            return type(leaf), leaf
        case torch.dtype() | torch.device():
            return (leaf,)
        case _:
            return None
