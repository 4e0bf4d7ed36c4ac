"""Which tensors of a forward pass hold data, and which follow from constants, positions and masks alone."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterable, Mapping
from typing import Final

import torch
from torch import Tensor, nn

from tico_wrapq.steps._held_tensors import HeldTensors
from tico_wrapq.steps._operators import Effect, Operator

_PIXELS = (torch.uint8, torch.int8)


class Origin(enum.IntEnum):
    """What the values of a tensor depend on; `FOREIGN` are data that no function of torch has handed on."""

    CONSTANTS = 0
    GIVEN = 1
    FOREIGN = 2
    DATA = 3


class DataFollowing:
    """Follows data through the functions of one forward pass.

    Inputs are data if they are floats, or bytes such as pictures. Integers and booleans are tokens, positions
    and masks; an embedding makes data of them, and so does a layer with weights of anything that depends on
    an input. What is computed from data is data. Rotary angles, position buckets and masks are not.

    A tensor that no function of torch has made and no module has `held`, such as one from numpy or from an
    extension in C++, counts as an input.
    """

    def __init__(self, held: HeldTensors) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}
        self._held = held

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Take in what the model is called with."""
        for tensor in tensors:
            self._note(tensor, Origin.DATA if _may_be_data(tensor) else Origin.GIVEN)

    def follow(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object], results: object
    ) -> Origin:
        """Note what the results of a function depend on, and return it."""
        origin = self._origin(operator, args, kwargs)
        if isinstance(results, Tensor):
            self._note(results, origin)
        else:
            for tensor in tensors_in(results):
                self._note(tensor, origin)
        if operator.in_place and args and isinstance(args[0], Tensor):
            self._note(args[0], origin)
        return origin

    def _origin(self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Origin:
        if operator.effect is Effect.READS_NO_VALUES:
            return Origin.CONSTANTS
        if operator.reads_first_alone:
            return self._origin_in(args[:1])
        origin = self._origin_in(args)
        if kwargs and origin is not Origin.DATA:
            origin = max(origin, self._origin_in(kwargs.values()))
        if origin is Origin.GIVEN and (
            operator.effect is Effect.LOOKS_UP or self._selects_rows(operator, args)
        ):
            return Origin.DATA
        return origin

    def _selects_rows(self, operator: Operator, args: tuple[object, ...]) -> bool:
        """Whether rows of an integer weight are looked up, which is one function only outside of a trace."""
        return operator.name == "index_select" and bool(args) and self._held.holds_codes(args[0])

    def _origin_in(self, values: Iterable[object]) -> Origin:
        """Return the most that any of `values` depends on. It ends at the first that holds data."""
        most = Origin.CONSTANTS
        for value in values:
            if isinstance(value, Tensor):
                origin = self.origin_of(value)
            elif type(value) in _NO_TENSORS:
                continue
            else:
                origin = max(map(self.origin_of, tensors_in(value)), default=Origin.CONSTANTS)
            if origin is Origin.DATA:
                return origin
            most = max(most, origin)
        return most

    def origin_of(self, tensor: Tensor) -> Origin:
        """Return what the values of `tensor` depend on."""
        found = self._known.get(id(tensor))
        if found is not None and found[0]() is tensor:
            return found[1]
        if isinstance(tensor, nn.Parameter) or tensor in self._held:
            return Origin.CONSTANTS
        return Origin.FOREIGN if _may_be_data(tensor) else Origin.GIVEN

    def _note(self, tensor: Tensor, origin: Origin) -> None:
        found = self._known.get(id(tensor))
        if found is None or found[1] < origin or found[0]() is not tensor:
            self._known[id(tensor)] = weakref.ref(tensor), origin


def _may_be_data(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex() or tensor.dtype in _PIXELS


# Most arguments are of these types, and telling that a value is no mapping takes a microsecond.
_NO_TENSORS: Final = frozenset(
    {int, float, bool, str, slice, type(None), type(...), torch.dtype, torch.device, torch.Size}
)


def holds_no_tensor(value: object) -> bool:
    """Whether that is known from the type of `value` alone."""
    return type(value) in _NO_TENSORS


def tensors_in(value: object) -> list[Tensor]:
    """Return the tensors in a value: those in tuples, lists and mappings."""
    found: list[Tensor] = []
    _collect(value, found)
    return found


def _collect(value: object, found: list[Tensor]) -> None:
    if isinstance(value, Tensor):
        found.append(value)
    elif isinstance(value, tuple | list):
        # Most are plain tensors and numbers, for which no call is made.
        for each in value:
            if isinstance(each, Tensor):
                found.append(each)
            elif type(each) not in _NO_TENSORS:
                _collect(each, found)
    elif type(value) not in _NO_TENSORS and isinstance(value, Mapping):
        for each in value.values():
            _collect(each, found)
