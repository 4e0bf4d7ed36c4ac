"""What steps turn out to be by what follows: scores of a softmax or exponential, or a norm's statistics."""

from __future__ import annotations

import enum
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, TypeVar

import attrs
from torch import Tensor

from tico_wrapq.steps._kept_scores import kept_exponents, kept_scores, with_zeros
from tico_wrapq.steps._operators import Operator

SOFTMAX: Final = frozenset({"softmax", "log_softmax"})
_LONGEST_CHAIN: Final = 16
RESHAPES: Final = frozenset({"view", "reshape", "unsqueeze", "squeeze", "flatten", "unflatten", "view_as"})

_MASKING: Final = frozenset(
    {"add", "sub", "where", "masked_fill", "maximum", "max", "minimum", "min"}
    | {"setitem", "index_put", "masked_scatter", "copy", "fill"}
)
"""Functions by which a mask may come to scores."""

_SQUARES: Final = frozenset({"pow", "square"})
_MEANS: Final = frozenset({"mean", "sum"})
_ROOTS: Final = frozenset({"rsqrt", "sqrt"})
_NORMS: Final = _SQUARES | _MEANS | _ROOTS | {"var", "add"}

T = TypeVar("T")


class StepRole(enum.Enum):
    """What a step turns out to be."""

    SCORES = "attention scores, which a mask may leave out"
    UNMASKED = "attention scores to which a mask may be applied later"
    REWRITTEN = "the same, and something writes to them in place before"
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

    def show(self, kept: Tensor | None = None) -> None:
        """Show the result to the point, with 0, which every grid has, for what is not `kept`."""
        self.see(self.value if kept is None else with_zeros(self.value, kept))


@attrs.frozen(eq=False)
class _Ancestor:
    """A step whose result has become a tensor value by value; `project` leads back to its shape.

    `is_unmasked` says that a mask may have come in between, `is_rewritten` that it was written to in place.
    """

    step: _Seen
    project: Project
    is_unmasked: bool = False
    is_rewritten: bool = False

    def masked(self) -> _Ancestor:
        """Return the same with a mask in between."""
        return attrs.evolve(self, is_unmasked=True)

    def rewritten(self, *, masks: bool) -> _Ancestor:
        """Return the same, written to in place, by what may be a mask if `masks` says so."""
        return attrs.evolve(self, is_unmasked=self.is_unmasked or masks, is_rewritten=True)


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
        # A function that works in place gives a tensor that has ancestors already.
        before = _known(self._ancestors, value)
        self._note(value, (_Ancestor(step, _same), *before[: _LONGEST_CHAIN - 1]))
        if len(self._waiting) > _LONGEST_CHAIN:
            self._waiting.popleft().show()

    @property
    def has_begun(self) -> bool:
        """Whether there is anything to follow."""
        return bool(self._ancestors)

    def before(self, operator: Operator, args: tuple[object, ...]) -> None:
        """Keep what is held back as it is when a function is about to write to its first argument."""
        written = args[0] if args else None
        if isinstance(written, Tensor):
            if before := _known(self._ancestors, written):
                masks = operator.name in _MASKING
                self._note(written, tuple(each.rewritten(masks=masks) for each in before))
            for step in self._waiting:
                if _share_memory(step.value, written):
                    step.value = step.value.clone()

    def after(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object], result: Tensor
    ) -> None:
        """Follow what a function has made of scores; a softmax tells which of them are left out."""
        name = operator.name
        sources = _tensors((*args, *kwargs.values()) if kwargs else args)
        if name in _NORMS:
            self._follow_squares(name, sources, result)
        if name in SOFTMAX and sources:
            self._settle_rows(sources[0], axis_of(args, kwargs))
            return
        if name == "exp":
            self._settle_exponents(sources)
        found: list[_Ancestor] = []
        if name == "cat":
            found = self._through_cat(sources, axis_of(args, kwargs), result)
        elif operator.by_value:
            alike = (each for each in sources if each is not result and each.shape == result.shape)
            found = [ancestor for each in alike for ancestor in _known(self._ancestors, each)]
            found = [each.masked() for each in found] if name in _MASKING else found
        elif name in RESHAPES and sources[0].numel() == result.numel():
            found = self._through(sources[0], _reshaped(sources[0]))
        if found:
            found = [*_known(self._ancestors, result), *found]
            self._note(result, tuple(found[:_LONGEST_CHAIN]))

    def _through(self, source: Tensor, project: Project) -> list[_Ancestor]:
        return [_chained(each, project) for each in _known(self._ancestors, source)]

    def _through_cat(self, sources: list[Tensor], axis: int, result: Tensor) -> list[_Ancestor]:
        found: list[_Ancestor] = []
        start = 0
        for source in sources:
            if source.ndim == result.ndim:  # torch joins empty tensors of one axis to any other
                found += self._through(source, _part(source, axis, start))
                start += source.shape[axis]
        return found

    def _follow_squares(self, name: str, sources: list[Tensor], result: Tensor) -> None:
        """Follow the squares of a norm through their mean to the root, which tells what they are."""
        squares = [step for source in sources for step in _known(self._squares, source)]
        means = [step for source in sources for step in _known(self._means, source)]
        own = [each.step for each in _known(self._ancestors, result)[:1] if each.step.value is result]
        if name in _ROOTS:
            for step in (*means, *(own if means else ())):
                step.note(StepRole.STATISTIC)
        elif name in _SQUARES:
            self._squares[id(result)] = weakref.ref(result), tuple(own)
        elif name == "var" or (name in _MEANS and squares):
            self._means[id(result)] = weakref.ref(result), (*squares, *own)
        elif name == "add" and means:
            self._means[id(result)] = weakref.ref(result), (*means, *own)

    def _settle_rows(self, scores: Tensor, axis: int) -> None:
        if axis in (-1, scores.ndim - 1) and _known(self._ancestors, scores):
            self._settle(scores, kept_scores(scores.detach()))

    def _settle_exponents(self, sources: list[Tensor]) -> None:
        for exponents in sources:
            kept = kept_exponents(exponents.detach()) if _known(self._ancestors, exponents) else None
            if kept is not None:
                self._settle(exponents, kept)

    def _settle(self, scores: Tensor, kept: Tensor | None) -> None:
        for each in _known(self._ancestors, scores):
            each.step.note(StepRole.SCORES)
            if each.is_unmasked:
                each.step.note(StepRole.REWRITTEN if each.is_rewritten else StepRole.UNMASKED)
            if each.step in self._waiting:
                self._waiting.remove(each.step)
                each.step.show(None if kept is None else each.project(kept))

    def finish(self) -> None:
        """Show everything that is still held back."""
        while self._waiting:
            self._waiting.popleft().show()

    def _note(self, tensor: Tensor, found: tuple[_Ancestor, ...]) -> None:
        self._ancestors[id(tensor)] = weakref.ref(tensor), found


def _known(found: Mapping[int, tuple[weakref.ref[Tensor], tuple[T, ...]]], tensor: Tensor) -> tuple[T, ...]:
    reference, known = found.get(id(tensor), (None, ()))
    return known if reference is not None and reference() is tensor else ()


def _same(kept: Tensor) -> Tensor:
    return kept


def _chained(ancestor: _Ancestor, project: Project) -> _Ancestor:
    if ancestor.project is _same:
        return attrs.evolve(ancestor, project=project)
    return attrs.evolve(ancestor, project=lambda kept: ancestor.project(project(kept)))


def _part(source: Tensor, axis: int, start: int) -> Project:
    return lambda kept: kept.narrow(axis, start, source.shape[axis])


def _reshaped(source: Tensor) -> Project:
    return lambda kept: kept.reshape(source.shape)


def axis_of(args: tuple[object, ...], kwargs: Mapping[str, object]) -> int:
    """Return the axis that a softmax or `cat` is told."""
    axis = args[1] if len(args) > 1 else kwargs.get("dim", 0)
    return axis if isinstance(axis, int) else 0


def _tensors(args: Iterable[object]) -> list[Tensor]:
    found: list[Tensor] = []
    for each in args:
        if isinstance(each, Tensor):
            found.append(each)
        elif isinstance(each, tuple | list):
            found += [part for part in each if isinstance(part, Tensor)]
    return found


def _share_memory(one: Tensor, other: Tensor) -> bool:
    return one.untyped_storage().data_ptr() == other.untyped_storage().data_ptr()
