"""Calls of a module, kept so that they can be made again."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

_IMMUTABLE = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size)


@attrs.frozen
class FromPrevious:
    """Stands for a tensor that the block before gave: the output leaf `leaf` of its call number `call`."""

    call: int
    leaf: int


@attrs.frozen(eq=False)
class Opaque:
    """Stands for an object that is no tensor and may change, such as a cache, by a copy made before its use."""

    copy: object


@attrs.frozen(eq=False, kw_only=True)
class Call:
    """The arguments of one call; tensors are copies that nothing writes to."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: nothing in it can change."""
        return self


Leaf: TypeAlias = object


def map_leaves(tree: object, change: Callable[[Leaf], object]) -> object:
    """Return `tree` with every leaf of its tuples, lists and dicts replaced by what `change` makes of it.

    >>> map_leaves({"a": (1, [2])}, lambda leaf: leaf * 10)
    {'a': (10, [20])}
    """
    if type(tree) is dict:
        return {key: map_leaves(value, change) for key, value in tree.items()}
    if type(tree) is list:
        return [map_leaves(value, change) for value in tree]
    if isinstance(tree, tuple) and not isinstance(tree, torch.Size):
        items = tuple(map_leaves(value, change) for value in tree)
        make: Callable[[tuple[object, ...]], object] = getattr(type(tree), "_make", tuple)
        return make(items)
    return change(tree)


def tensor_leaves(tree: object) -> list[Tensor]:
    """Return the tensors in `tree`, in order."""
    found: list[Tensor] = []

    def note(leaf: object) -> object:
        if isinstance(leaf, Tensor):
            found.append(leaf)
        return leaf

    values = tree.values() if isinstance(tree, Mapping) else (tree,)
    for value in values:
        map_leaves(value, note)
    return found


class Snapshots:
    """Copies of arguments: one copy an object, so that what was shared stays shared."""

    def __init__(self) -> None:
        self._opaque: dict[int, tuple[weakref.ref[object], Opaque]] = {}

    def take(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], previous: Callable[[Tensor], object]
    ) -> Call:
        """Return the call; `previous` gives what stands for a tensor from the block before, or None."""
        copies: dict[int, Tensor] = {}

        def copied(leaf: object) -> object:
            if isinstance(leaf, Tensor):
                return previous(leaf) or copies.setdefault(id(leaf), leaf.detach().clone())
            return leaf if isinstance(leaf, _IMMUTABLE) else self._opaque_copy(leaf)

        return Call(
            args=tuple(map_leaves(value, copied) for value in args),
            kwargs={name: map_leaves(value, copied) for name, value in kwargs.items()},
        )

    def _opaque_copy(self, leaf: object) -> Opaque:
        known = self._opaque.get(id(leaf))
        if known is None or known[0]() is not leaf:
            # Weak, so that a cache with the states of every layer does not outlive the user's pass.
            known = (weakref.ref(leaf), Opaque(deepcopy(leaf)))
            self._opaque[id(leaf)] = known
        return known[1]


class Replay:
    """Makes the arguments of `calls` again, in order; opaque objects go on from call to call as at first."""

    def __init__(self, calls: Sequence[Call], outputs: Mapping[tuple[int, int], Tensor]) -> None:
        self._calls = calls
        self._outputs = outputs
        self._objects: dict[int, object] = {}

    def __iter__(self) -> Iterator[tuple[tuple[object, ...], dict[str, object]]]:
        """Yield fresh arguments for each call."""
        used_in = [{id(opaque) for opaque in _opaque_leaves(call)} for call in self._calls]
        last = {identity: index for index, used in enumerate(used_in) for identity in used}
        for index, call in enumerate(self._calls):
            yield self._arguments(call)
            for identity in used_in[index]:
                if last[identity] == index:
                    self._objects.pop(identity, None)

    def _arguments(self, call: Call) -> tuple[tuple[object, ...], dict[str, object]]:
        copies: dict[int, Tensor] = {}

        def made(leaf: object) -> object:
            match leaf:
                case FromPrevious(call=call, leaf=number):
                    return self._outputs[call, number].clone()
                case Opaque(copy=original):
                    if id(leaf) not in self._objects:
                        self._objects[id(leaf)] = deepcopy(original)
                    return self._objects[id(leaf)]
                case Tensor():
                    return copies.setdefault(id(leaf), leaf.clone())
                case _:
                    return leaf

        args = tuple(map_leaves(value, made) for value in call.args)
        return args, {name: map_leaves(value, made) for name, value in call.kwargs.items()}


def _opaque_leaves(call: Call) -> list[Opaque]:
    found: list[Opaque] = []

    def note(leaf: object) -> object:
        if isinstance(leaf, Opaque):
            found.append(leaf)
        return leaf

    for value in (*call.args, *call.kwargs.values()):
        map_leaves(value, note)
    return found
