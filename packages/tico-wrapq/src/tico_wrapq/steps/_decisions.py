"""Which results of steps serve to decide only: comparisons, buckets and indices are all that reads them."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import TypeAlias, final

import attrs
from torch import Tensor

Tell: TypeAlias = Callable[[bool], None]


@attrs.define(eq=False)
class _Value:
    """A tensor of data in one forward pass.

    `counts` says that its numbers are needed, `is_read` that anything reads it; `tell` takes in the end
    whether they are needed.
    """

    tensor: weakref.ref[Tensor]
    sources: tuple[_Value, ...]
    tell: Tell | None = None
    counts: bool = False
    is_read: bool = False


@final
class Decisions:
    """Follows data to where integers or booleans are made of them.

    Numbers are needed that come out of the model, that nothing reads, or of which needed ones are computed.
    The rest is compared, sorted or put into buckets: what comes of that changes where a grid moves them over
    a limit.
    """

    def __init__(self) -> None:
        self._values: list[_Value] = []
        self._known: dict[int, _Value] = {}

    def follow(self, operands: Iterable[Tensor], results: tuple[Tensor, ...], tell: Tell | None) -> None:
        """Note that `results` are computed from `operands`; `tell` is told whether the numbers count."""
        sources = tuple(value for each in operands if (value := self._value(each)) is not None)
        for source in sources:
            source.is_read = True
        numbers = [each for each in results if each.is_floating_point() or each.is_complex()]
        # Of what gives values with their places, such as the largest few, often only the places are read.
        by_place = len(numbers) < len(results)
        for each in numbers:
            value = _Value(weakref.ref(each), sources, tell, is_read=by_place)
            self._values.append(value)
            self._known[id(each)] = value

    def need(self, tensors: Iterable[Tensor]) -> None:
        """Note that the numbers in `tensors` are needed."""
        for each in tensors:
            value = self._value(each)
            if value is not None:
                value.counts = True

    def finish(self) -> None:
        """Tell of each value whether its numbers are needed."""
        for value in reversed(self._values):
            needed = value.counts or not value.is_read
            if needed:
                for source in value.sources:
                    source.counts = True
            if value.tell is not None:
                value.tell(needed)
        self._values.clear()
        self._known.clear()

    def _value(self, tensor: Tensor) -> _Value | None:
        value = self._known.get(id(tensor))
        return value if value is not None and value.tensor() is tensor else None
