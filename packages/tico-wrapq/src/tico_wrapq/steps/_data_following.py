"""Which tensors of a forward pass hold data, and which follow from constants, positions and masks alone."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor

from tico_wrapq.steps._operators import Effect, Operator, reads_first_alone

_PIXELS = (torch.uint8, torch.int8)


class Origin(enum.IntEnum):
    """What the values of a tensor depend on."""

    CONSTANTS = 0
    GIVEN = 1
    DATA = 2


class DataFollowing:
    """Follows data through the functions of one forward pass.

    Data come in as floats, or as bytes, as pictures do; integers and booleans are tokens, positions and
    masks. An embedding makes data of them, and so does a layer with weights of anything that depends on an
    input. What is computed from data is data; rotary angles, position buckets and masks are none.
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Origin]] = {}

    def give(self, tensors: Iterable[Tensor]) -> None:
        """Take in what the model is called with."""
        for tensor in tensors:
            data = tensor.is_floating_point() or tensor.dtype in _PIXELS
            self._note(tensor, Origin.DATA if data else Origin.GIVEN)

    def follow(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object], results: object
    ) -> Origin:
        """Note what the results of a function depend on, and return it."""
        origin = self._origin(operator, args, kwargs)
        if origin is not Origin.CONSTANTS:
            for tensor in tensors_in(results):
                self._note(tensor, origin)
            if operator.in_place and args and isinstance(args[0], Tensor):
                self._note(args[0], origin)
        return origin

    def _origin(self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Origin:
        if operator.effect is Effect.READS_NO_VALUES:
            return Origin.CONSTANTS
        read = args[:1] if reads_first_alone(operator) else (args, *kwargs.values())
        origin = max((self.origin_of(each) for each in tensors_in(read)), default=Origin.CONSTANTS)
        looked_up = origin is Origin.GIVEN and operator.effect is Effect.LOOKS_UP
        return Origin.DATA if looked_up else origin

    def origin_of(self, tensor: Tensor) -> Origin:
        """Return what the values of `tensor` depend on."""
        reference, origin = self._known.get(id(tensor), (None, Origin.CONSTANTS))
        return origin if reference is not None and reference() is tensor else Origin.CONSTANTS

    def _note(self, tensor: Tensor, origin: Origin) -> None:
        if self.origin_of(tensor) < origin:
            self._known[id(tensor)] = weakref.ref(tensor), origin


def tensors_in(value: object) -> Iterator[Tensor]:
    """Yield the tensors in a value: those in tuples, lists and mappings, and in what has fields of them."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for each in value:
            yield from tensors_in(each)
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from tensors_in(each)
