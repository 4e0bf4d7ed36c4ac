"""Copies of the arguments of calls, made before the call may change them."""

from __future__ import annotations

import types
import weakref
from collections.abc import Callable, Mapping
from copy import deepcopy

import attrs
import torch
from torch import Tensor, nn

from tico_config import CalibrationError, Found, Problem
from tico_quantizers.calibration._calls import Call, Opaque, map_leaves

_BY_REFERENCE = (
    type(None),
    bool,
    int,
    float,
    complex,
    str,
    bytes,
    range,
    slice,
    type,
    types.FunctionType,
    torch.dtype,
    torch.device,
    torch.Size,
    torch.Generator,
    nn.Module,
)


def revision(tensor: Tensor) -> int:
    """Return a number that is another one after something has written to `tensor`."""
    if not tensor.is_inference():
        return tensor._version
    # Inference tensors count no versions. A sum of integers does not depend on the number of threads.
    return int(_bytes(tensor).sum(dtype=torch.int64)) if tensor.numel() else 0


def version(tensor: Tensor) -> int | None:
    """Return a number that is another one after something has written to `tensor`; None if it counts none."""
    return None if tensor.is_inference() else tensor._version


def same_bits(one: Tensor, other: Tensor) -> bool:
    """Return whether two tensors have the same format, shape and bits."""
    alike = one.dtype == other.dtype and one.shape == other.shape and one.device == other.device
    return alike and torch.equal(_bytes(one), _bytes(other))


def _bytes(tensor: Tensor) -> Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


@attrs.frozen(eq=False)
class _Seen:
    """A tensor that an object held, and its version; to read every state of a cache would cost too much."""

    tensor: weakref.ref[Tensor]
    version: int

    @classmethod
    def now(cls, tensor: Tensor) -> _Seen:
        return cls(weakref.ref(tensor), 0 if tensor.is_inference() else tensor._version)

    def is_still(self, tensor: Tensor) -> bool:
        return self.tensor() is tensor and self.version == _Seen.now(tensor).version


@attrs.define(eq=False)
class _Kept:
    """What stands for an object that is kept, and the tensors that the object held when it was last seen."""

    original: Callable[[], object]
    stand_in: Opaque
    state: list[_Seen]


class Snapshots:
    """Copies of arguments: one copy an object, so that what was shared stays shared."""

    def __init__(self) -> None:
        self._tensors: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}
        self._opaque: dict[int, _Kept] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> Snapshots:
        """Return an empty one: what a copied model is called with next is nothing that it has seen."""
        return Snapshots()

    def take(
        self, args: tuple[object, ...], kwargs: Mapping[str, object], previous: Callable[[Tensor], object]
    ) -> Call:
        """Return the call; `previous` gives what stands for a tensor from the block before, or None."""

        def copied(leaf: object) -> object:
            if isinstance(leaf, Tensor):
                return previous(leaf) or self._tensor_copy(leaf)
            return leaf if isinstance(leaf, _BY_REFERENCE) else self._opaque_copy(leaf)

        return Call(
            args=tuple(map_leaves(value, copied) for value in args),
            kwargs={name: map_leaves(value, copied) for name, value in kwargs.items()},
        )

    def settle(self) -> None:
        """Take the state in which a block has left the objects it was given as the one it works from."""
        self.forget_gone()
        for kept in self._opaque.values():
            kept.state = _state(kept.original())

    def forget_gone(self) -> None:
        """Drop the copies of what no longer exists."""
        self._tensors = {key: known for key, known in self._tensors.items() if known[0]() is not None}
        self._opaque = {key: kept for key, kept in self._opaque.items() if kept.original() is not None}

    def _tensor_copy(self, leaf: Tensor) -> Tensor:
        """Return a copy: the same one of a mask that every block of a pass is given."""
        known = self._tensors.get(id(leaf))
        if known is not None and known[0]() is leaf and same_bits(known[1], leaf):
            return known[1]
        copy = leaf.detach().clone()
        self._tensors[id(leaf)] = (weakref.ref(leaf), copy)
        return copy

    def _opaque_copy(self, leaf: object) -> Opaque:
        """Return a copy: another one only if something outside the blocks has changed the object."""
        known = self._opaque.get(id(leaf))
        if known is not None and known.original() is leaf and _is_unchanged(known, leaf):
            return known.stand_in
        kept = _Kept(_reference(leaf), Opaque(_deep_copy(leaf)), _state(leaf))
        self._opaque[id(leaf)] = kept
        return kept.stand_in


def _is_unchanged(kept: _Kept, leaf: object) -> bool:
    tensors = tensors_in(leaf)
    pairs = zip(kept.state, tensors, strict=False)
    return len(tensors) == len(kept.state) and all(seen.is_still(tensor) for seen, tensor in pairs)


def _state(leaf: object) -> list[_Seen]:
    return [_Seen.now(tensor) for tensor in tensors_in(leaf)]


def tensors_in(leaf: object) -> list[Tensor]:
    """Return the tensors that an object holds, as far as they can be reached by attributes and containers."""
    found: list[Tensor] = []
    seen: set[int] = set()
    waiting = [leaf]
    while waiting:
        item = waiting.pop()
        if id(item) in seen or isinstance(item, _BY_REFERENCE):
            continue
        seen.add(id(item))
        match item:
            case Tensor():
                found.append(item)
            case Mapping():
                waiting += item.values()
            case list() | tuple() | set() | frozenset():
                waiting += item
            case _:
                waiting += getattr(item, "__dict__", {}).values()
    return found


def _reference(leaf: object) -> Callable[[], object]:
    """Return a weak reference, so that a cache with the states of every layer does not outlive its pass."""
    try:
        return weakref.ref(leaf)
    except TypeError:
        return lambda: leaf


def _deep_copy(leaf: object) -> object:
    try:
        return deepcopy(leaf)
    except (RuntimeError, TypeError) as error:
        found = Found(f"a {type(leaf).__name__} that cannot be copied ({error})")
        expected = "tensors, plain values, or objects that can be copied"
        remedy = "run calibration under torch.no_grad(), or leave that argument out"
        sentence = f"a block takes {found}"
        problem = Problem(
            field="block argument", value=found, expected=expected, remedy=remedy, sentence=sentence
        )
        raise CalibrationError(problem) from error
