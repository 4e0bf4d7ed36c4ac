"""What steps turn out to be by what follows: scores of a softmax or exponential, or a norm's statistics."""

from __future__ import annotations

import enum
import math
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, TypeVar

import attrs
import torch
from torch import Tensor

from tico_wrapq.steps._operators import Operator

OUT_OF_REACH: Final = 80.0
"""A score so far below the largest of its row has a weight below 2e-35 of the largest one: exp(-80)."""

_SOFTMAX: Final = frozenset({"softmax", "log_softmax"})
_LONGEST_CHAIN: Final = 16
_RESHAPES: Final = frozenset({"view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as"})

_SQUARES: Final = frozenset({"pow", "square"})
_MEANS: Final = frozenset({"mean", "sum"})
_ROOTS: Final = frozenset({"rsqrt", "sqrt"})

T = TypeVar("T")


class StepRole(enum.Enum):
    """What a step turns out to be."""

    SCORES = "attention scores, which a mask may leave out"
    STATISTIC = "a statistic of a norm"


See: TypeAlias = Callable[[Tensor], object]
Note: TypeAlias = Callable[[StepRole], None]
Project: TypeAlias = Callable[[Tensor], Tensor]


@attrs.define(eq=False)
class _Seen:
    """A step's result that is yet to be shown to its point, as `see` does; `note` is told what it is."""

    value: Tensor
    see: See
    note: Note

    def show(self, left_out: Tensor | None = None) -> None:
        """Show the result to the point, with 0, which every grid has, where something is left out."""
        self.see(self.value if left_out is None else self.value.masked_fill(left_out, 0.0))


@attrs.frozen(eq=False)
class _Ancestor:
    """A step whose result has become a tensor value by value; `project` leads back to its shape."""

    step: _Seen
    project: Project


class ScoreTracing:
    """Holds the results of steps back until it is known whether they are scores that a mask leaves out.

    A softmax leaves out what is far below the largest of the row, an exponential what is far below zero.
    """

    def __init__(self) -> None:
        self._waiting: deque[_Seen] = deque()
        self._ancestors: dict[int, tuple[weakref.ref[Tensor], tuple[_Ancestor, ...]]] = {}
        self._squares: dict[int, tuple[weakref.ref[Tensor], tuple[_Seen, ...]]] = {}
        self._means: dict[int, tuple[weakref.ref[Tensor], tuple[_Seen, ...]]] = {}

    def hold(self, value: Tensor, see: See, note: Note) -> None:
        """Hold the result of a step back; `note` is told if it turns out to be more than a step."""
        step = _Seen(value, see, note)
        self._waiting.append(step)
        self._note(value, (_Ancestor(step, _same),))
        if len(self._waiting) > _LONGEST_CHAIN:
            self._waiting.popleft().show()

    def before(self, operator: Operator, args: tuple[object, ...]) -> None:
        """Keep what is held back as it is when a function is about to write to it."""
        written = args[0] if operator.in_place and args else None
        if isinstance(written, Tensor):
            for step in self._waiting:
                if _share_memory(step.value, written):
                    step.value = step.value.clone()

    def after(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object], result: Tensor
    ) -> None:
        """Follow what a function has made of scores; a softmax tells which of them are left out."""
        sources = list(_tensors((*args, *kwargs.values())))
        self._follow_squares(operator, sources, result)
        if operator.name in _SOFTMAX and sources:
            self._settle_rows(sources[0], _axis(args, kwargs))
            return
        if operator.name == "exp":
            self._settle_exponents(sources)
        found = list(_known(self._ancestors, result))
        joined_along = _axis(args, kwargs) if operator.name == "cat" else None
        start = 0
        for source in sources:
            if joined_along is not None and source.ndim != result.ndim:
                continue  # torch joins empty tensors of one axis to any other
            if joined_along is not None:
                project: Project | None = _part(source, joined_along, start)
                start += source.shape[joined_along]
            else:
                project = _projection(operator, source, result)
            if project is not None:
                found += [_chained(each, project) for each in _known(self._ancestors, source)]
        if found:
            self._note(result, tuple(found[:_LONGEST_CHAIN]))

    def _follow_squares(self, operator: Operator, sources: list[Tensor], result: Tensor) -> None:
        """Follow the squares of a norm through their mean to the root, which tells what they are."""
        squares = tuple(step for source in sources for step in _known(self._squares, source))
        means = tuple(step for source in sources for step in _known(self._means, source))
        own = tuple(each.step for each in _known(self._ancestors, result)[:1] if each.step.value is result)
        if operator.name in _ROOTS:
            for step in (*means, *(own if means else ())):
                step.note(StepRole.STATISTIC)
        elif operator.name in _SQUARES:
            self._squares[id(result)] = weakref.ref(result), own
        elif operator.name == "var" or (operator.name in _MEANS and squares):
            self._means[id(result)] = weakref.ref(result), (*squares, *own)
        elif operator.name == "add" and means:
            self._means[id(result)] = weakref.ref(result), (*means, *own)

    def _settle_rows(self, scores: Tensor, axis: int) -> None:
        if axis in (-1, scores.ndim - 1):
            self._settle(scores, _out_of_reach(scores))

    def _settle_exponents(self, sources: list[Tensor]) -> None:
        for exponents in sources:
            left_out = exponents < -OUT_OF_REACH
            if bool(left_out.any()):
                self._settle(exponents, left_out)

    def _settle(self, scores: Tensor, left_out: Tensor) -> None:
        for each in _known(self._ancestors, scores):
            each.step.note(StepRole.SCORES)
            if each.step in self._waiting:
                self._waiting.remove(each.step)
                each.step.show(each.project(left_out))

    def finish(self) -> None:
        """Show everything that is still held back."""
        while self._waiting:
            self._waiting.popleft().show()

    def _note(self, tensor: Tensor, found: tuple[_Ancestor, ...]) -> None:
        self._ancestors[id(tensor)] = weakref.ref(tensor), found


def _known(found: Mapping[int, tuple[weakref.ref[Tensor], tuple[T, ...]]], tensor: Tensor) -> tuple[T, ...]:
    reference, known = found.get(id(tensor), (None, ()))
    return known if reference is not None and reference() is tensor else ()


def _same(left_out: Tensor) -> Tensor:
    return left_out


def _chained(ancestor: _Ancestor, project: Project) -> _Ancestor:
    return _Ancestor(ancestor.step, lambda left_out: ancestor.project(project(left_out)))


def _part(source: Tensor, axis: int, start: int) -> Project:
    return lambda left_out: left_out.narrow(axis, start, source.shape[axis])


def _projection(operator: Operator, source: Tensor, result: Tensor) -> Project | None:
    """Return how what is left out of `result` is left out of `source`; None if that can't be said."""
    if source.shape == result.shape:
        return _same
    if operator.name in _RESHAPES and source.numel() == result.numel():
        return lambda left_out: left_out.reshape(source.shape)
    return None


def _axis(args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return axis if isinstance(axis, int) else 0


def _tensors(args: Iterable[object]) -> Iterable[Tensor]:
    for each in args:
        if isinstance(each, Tensor):
            yield each
        elif isinstance(each, tuple | list):
            yield from (part for part in each if isinstance(part, Tensor))


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()


def _out_of_reach(scores: Tensor) -> Tensor:
    return (scores < scores.amax(-1, keepdim=True) - OUT_OF_REACH) | (scores == -math.inf)


def moved_within_reach(scores: Tensor, move: Callable[[Tensor], Tensor]) -> Tensor:
    """Return `scores` moved to a grid, but for those out of reach, which do not count."""
    largest, left_out = scores.amax(-1, keepdim=True), _out_of_reach(scores)
    moved = move(torch.where(left_out, largest, scores))
    return torch.where(left_out, scores, moved)
