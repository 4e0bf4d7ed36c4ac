"""Calls of a module, kept so that they can be made again."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from copy import deepcopy
from typing import TypeAlias

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_quantizers.calibration._activation_store import StoredTensor
from tico_quantizers.calibration._masks import Statement

_DEVICES = ("cpu", "cuda")


@attrs.frozen
class FromBlock:
    """Stands for a tensor that an earlier block gave: the output leaf `leaf` of its call number `call`."""

    block: int
    call: int
    leaf: int


@attrs.frozen(eq=False)
class Opaque:
    """Stands for an object that is no tensor and may change, such as a cache: a copy made before its use."""

    copy: object


@attrs.frozen
class Autocast:
    """The automatic casts that held when a call was made."""

    enabled: tuple[bool, ...]
    dtypes: tuple[torch.dtype, ...]

    @classmethod
    def now(cls) -> Autocast:
        """Return those that hold."""
        return cls(
            tuple(torch.is_autocast_enabled(device) for device in _DEVICES),
            tuple(torch.get_autocast_dtype(device) for device in _DEVICES),
        )

    def again(self) -> ExitStack:
        """Return a context in which they hold again."""
        stack = ExitStack()
        for device, enabled, dtype in zip(_DEVICES, self.enabled, self.dtypes, strict=True):
            if enabled or torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, dtype=dtype, enabled=enabled))
        return stack


@attrs.frozen(eq=False, kw_only=True)
class Call:
    """The arguments of one call, and what masks had `said`; tensors are copies that nothing writes to."""

    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    autocast: Autocast = attrs.field(factory=Autocast.now)
    said: tuple[Statement, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: nothing in it can change."""
        return self


Leaf: TypeAlias = object
Kept: TypeAlias = Tensor | StoredTensor


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


def leaves_of(call: Call) -> list[Leaf]:
    """Return the leaves of the arguments of `call`, in order."""
    found: list[Leaf] = []

    def note(leaf: Leaf) -> Leaf:
        found.append(leaf)
        return leaf

    for value in (*call.args, *call.kwargs.values()):
        map_leaves(value, note)
    return found


def with_leaves(call: Call, leaves: Sequence[Leaf]) -> Call:
    """Return `call` with other leaves, given in order."""
    given = iter(leaves)
    args = tuple(map_leaves(value, lambda _: next(given)) for value in call.args)
    kwargs = {name: map_leaves(value, lambda _: next(given)) for name, value in call.kwargs.items()}
    return attrs.evolve(call, args=args, kwargs=kwargs)


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


class Replay:
    """Makes the arguments of `calls` again, in order; opaque objects go on from call to call as at first."""

    def __init__(self, calls: Sequence[Call], outputs: Mapping[FromBlock, Kept]) -> None:
        self._calls = calls
        self._outputs = outputs
        self._objects: dict[int, object] = {}

    def __iter__(self) -> Iterator[tuple[tuple[object, ...], dict[str, object], Autocast]]:
        """Yield fresh arguments for each call, and the casts to make it under."""
        used_in = [{id(opaque) for opaque in _opaque_leaves(call)} for call in self._calls]
        last = {identity: index for index, used in enumerate(used_in) for identity in used}
        for index, call in enumerate(self._calls):
            yield *self._arguments(call), call.autocast
            for identity in used_in[index]:
                if last[identity] == index:
                    self._objects.pop(identity, None)

    def _arguments(self, call: Call) -> tuple[tuple[object, ...], dict[str, object]]:
        copies: dict[int, Tensor] = {}

        def copy_of(kept: Kept) -> Tensor:
            if id(kept) not in copies:
                copies[id(kept)] = kept.clone() if isinstance(kept, Tensor) else kept.tensor()
            return copies[id(kept)]

        def made(leaf: object) -> object:
            match leaf:
                case FromBlock():
                    return copy_of(self._outputs[leaf])
                case Opaque(copy=original):
                    if id(leaf) not in self._objects:
                        self._objects[id(leaf)] = deepcopy(original)
                    return self._objects[id(leaf)]
                case Tensor() | StoredTensor():
                    return copy_of(leaf)
                case _:
                    return leaf

        args = tuple(map_leaves(value, made) for value in call.args)
        return args, {name: map_leaves(value, made) for name, value in call.kwargs.items()}


def share_objects(calls: Sequence[Call]) -> bool:
    """Return whether two of `calls` have the same opaque object among their arguments."""
    objects = [identity for call in calls for identity in {id(opaque) for opaque in _opaque_leaves(call)}]
    return len(set(objects)) < len(objects)


def _opaque_leaves(call: Call) -> list[Opaque]:
    return [leaf for leaf in leaves_of(call) if isinstance(leaf, Opaque)]


def first_rows(args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor | None:
    """Return the first argument of a call that has rows of features."""
    leaves = (*tensor_leaves(args), *tensor_leaves(kwargs))
    return next((leaf for leaf in leaves if leaf.ndim > 1 and leaf.is_floating_point()), None)
