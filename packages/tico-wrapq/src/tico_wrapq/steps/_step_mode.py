"""The function mode that finds the steps of modules while their forward runs."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from types import CodeType, FrameType
from typing import Final, Protocol

import attrs
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tico_wrapq.base import Passage
from tico_wrapq.steps._attention import Attention
from tico_wrapq.steps._call_site import Site, is_inside, name_of, site_of
from tico_wrapq.steps._data_following import DataFollowing, Origin, holds_no_tensor, tensors_in
from tico_wrapq.steps._decisions import Decisions
from tico_wrapq.steps._deferred_scores import DeferredScores
from tico_wrapq.steps._held_tensors import HeldTensors, held_in
from tico_wrapq.steps._operators import ATTENTION, LEAVES, LOOK_UPS, Effect, Function, Operator, operator_of
from tico_wrapq.steps._row_following import follow_rows
from tico_wrapq.steps._score_tracing import ScoreTracing
from tico_wrapq.steps._step_work import step_work
from tico_wrapq.steps._weight_uses import WeightUse, WeightUses

_STORES: Final = ("transformers/cache_utils.py",)
"""Files whose functions keep what they are given and hand it out again, which is no step of a model."""


class Points(Protocol):
    """The points of the steps of one module."""

    def pass_through(self, name: str, result: Tensor, tracing: ScoreTracing) -> Tensor:
        """Return the `result` of the step `name`, seen or moved to its grid."""

    def waits_for_mask(self, name: str) -> bool:
        """Whether the grid of the step `name` follows from each row, and a mask is applied later."""

    def move_apart(self, name: str, result: Tensor, left_out: Tensor | None) -> Tensor:
        """Return the `result` of a step that waited, moved to its grid but for what is `left_out`."""

    def leave_float(self, name: str, function: str) -> None:
        """Note that the step `name` calls a function that no table knows."""

    def note_foreign(self, name: str) -> None:
        """Note that the step `name` reads nothing but what no function of torch has handed on."""

    def note_need(self, name: str, needed: bool) -> None:
        """Take note whether a result of the step `name` was needed as a number, or to decide only."""

    @property
    def is_calibrating(self) -> bool:
        """Whether steps are being found."""

    def note_work(self, count: int) -> None:
        """Take note of `count` multiply-accumulates."""

    def note_weight(self, weight: nn.Parameter, use: WeightUse) -> None:
        """Take note of how a step reads a weight, if it is one of the module's own."""

    @property
    def passage(self) -> Passage | None:
        """The forward pass of a calibration in which some tokens are padding; None without padding."""


@attrs.frozen(eq=False)
class _Owner:
    """A module whose forward runs: its points, and the code of that forward."""

    points: Points
    forward: CodeType


class StepMode(TorchFunctionMode):
    """Hands the result of each step to the points of the module whose own forward computes it."""

    def __init__(self, root: nn.Module) -> None:
        super().__init__()
        self._owners: list[_Owner] = []
        self._following = DataFollowing(HeldTensors(root))
        self._decisions = Decisions()
        self._tracing = ScoreTracing()
        self._uses = WeightUses()
        self._deferred = DeferredScores()

    @contextmanager
    def inside(self, points: Points, forward: CodeType) -> Iterator[None]:
        """Let the steps that follow be those of `points`, until the module's forward has ended."""
        self._owners.append(_Owner(points, forward))
        try:
            yield
        finally:
            self._owners.pop()

    def end(self, output: object) -> None:
        """Settle what is open when the outermost module has given its `output`."""
        if len(self._owners) == 1:
            self._tracing.finish()
            self._deferred.write_to(tensors_in(output))
            self._decisions.need(tensors_in(output))
            self._decisions.finish()

    def give(self, values: object) -> None:
        """Take in the arguments of the outermost module."""
        self._following.give(held_in(values))

    def __torch_function__(
        self,
        func: Function,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Return what `func` returns, passed through the point of the step if it is one."""
        named, operator = kwargs or {}, operator_of(func)
        if operator.name == ATTENTION:
            name = self._name(operator, sys._getframe(1))
            if name is not None:
                return self._attention(name, operator, args, named)
        if operator.in_place:
            self._tracing.before(operator, args)
        args, named = self._deferred.given_to(operator, args, named)
        results = func(*args, **named)
        if holds_no_tensor(results) and not operator.in_place:
            self._decisions.need(tensors_in(args) if isinstance(results, float) else ())
            return results
        origin = self._following.follow(operator, args, named, results)
        calibrating = bool(self._owners) and self._owners[-1].points.is_calibrating
        if calibrating:
            self._note_weights(operator, args, named, results, origin)
        if origin < Origin.FOREIGN:
            return results
        is_number = _hold_numbers(args if operator.name in LEAVES else results)
        name = self._name(operator, sys._getframe(1)) if is_number and operator.may_be_named else None
        if calibrating:
            self._follow_data(func, operator, args, named, results, name)
        return self._passed(func, operator, args, named, results, name, origin) if is_number else results

    def _passed(
        self,
        function: Function,
        operator: Operator,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        results: object,
        name: str | None,
        origin: Origin,
    ) -> object:
        """Return the `results` of a function of data, through the point of the step where it is one."""
        if name is not None and operator.effect is Effect.UNKNOWN:
            self._owners[-1].points.leave_float(name, operator.name)
            return results
        if name is not None and origin is Origin.FOREIGN:
            self._owners[-1].points.note_foreign(name)
            self._following.give(tensors_in(results))
        if not isinstance(results, Tensor) or not results.is_floating_point():
            return results
        if self._deferred.goes_on(operator, args, kwargs):
            move = partial(self._move_apart, self._owners[-1].points, name)
            return self._deferred.follow(function, operator, args, kwargs, results, move)
        moved = results if name is None else self._moved(name, operator, args, kwargs, results)
        if self._tracing.has_begun:
            self._tracing.after(operator, args, kwargs, moved)
        return moved

    def _follow_data(
        self,
        function: Function,
        operator: Operator,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        results: object,
        name: str | None,
    ) -> None:
        """Follow padding, and which data are needed as numbers, while steps are being found."""
        points = self._owners[-1].points
        if (passage := points.passage) is not None:
            follow_rows(passage, function, operator, args, kwargs, results)
        if operator.effect is Effect.READS_NO_VALUES:
            return
        read = args[:1] if operator.reads_first_alone else (*args, *kwargs.values())
        if operator.name in LEAVES or (operator.in_place and not isinstance(results, Tensor)):
            self._decisions.need(tensors_in(read))
        tell = None if name is None else partial(points.note_need, name)
        made = (results,) if isinstance(results, Tensor) else tuple(tensors_in(results))
        self._decisions.follow(tensors_in(read), made, tell)

    def _note_weights(
        self,
        operator: Operator,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        results: object,
        origin: Origin,
    ) -> None:
        """Tell the owners of weights how a step with data reads them, while steps are being found."""
        reads = origin >= Origin.FOREIGN and operator.effect in (Effect.COMPUTES, Effect.LOOKS_UP)
        if reads or operator.name in LOOK_UPS:
            for weight, use in self._uses.find(operator, args, kwargs):
                for owner in self._owners:
                    owner.points.note_weight(weight, use)
        else:
            self._uses.follow(operator, args, results)

    def _moved(
        self,
        name: str,
        operator: Operator,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        result: Tensor,
    ) -> Tensor:
        points = self._owners[-1].points
        if points.is_calibrating:
            points.note_work(step_work(operator, args, kwargs, result))
        if points.waits_for_mask(name):
            self._deferred.begin(result, partial(self._move_apart, points, name))
            return result
        moved = points.pass_through(name, result, self._tracing)
        if moved is result:
            return result
        if operator.in_place or "out" in kwargs:
            return result.copy_(moved)
        self._following.follow(operator, args, kwargs, moved)
        return moved

    def _move_apart(
        self, points: Points, name: str | None, result: Tensor, left_out: Tensor | None
    ) -> Tensor:
        """Return the `result` of a step `name` that waited, or of a function that is none, on its grid."""
        moved = result
        if name is not None:
            if points.waits_for_mask(name):
                moved = points.move_apart(name, result, left_out)
            else:
                moved = points.pass_through(name, result, self._tracing)
        self._following.give((moved,))
        return moved

    def _attention(
        self, name: str, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> Tensor:
        def move(step: str, result: Tensor) -> Tensor:
            inner = f"{name}_{step}" if step else name
            return self._owners[-1].points.pass_through(inner, result, self._tracing)

        result = Attention(*args, **kwargs).by_steps(move)  # type: ignore[arg-type]  # as torch was given them
        if self._owners[-1].points.is_calibrating:
            self._owners[-1].points.note_work(step_work(operator, args, kwargs, result))
        self._following.follow(operator, args, kwargs, result)
        self._decisions.need(tensors_in((args, kwargs)))
        return result

    def _name(self, operator: Operator, frame: FrameType) -> str | None:
        """Return the name of the step that `frame` computes; None where it is none of the module's own."""
        site = site_of(frame, self._owners[-1].forward) if self._owners else None
        return None if site is None else _known_name(site, operator)


def _hold_numbers(results: object) -> bool:
    if isinstance(results, Tensor):
        return results.is_floating_point() or results.is_complex()
    return any(each.is_floating_point() or each.is_complex() for each in tensors_in(results))


# One for each place in the text of functions that are steps, and begun anew where code is made without end.
_MOST_NAMES: Final = 1 << 16
_NAMES: Final[dict[tuple[int, ...], tuple[Site, str | None]]] = {}


def _known_name(site: Site, operator: Operator) -> str | None:
    """Return the name of a step, found once: the site is kept, so that its codes keep their identities."""
    key = tuple(part for code, at in site for part in (id(code), at))
    known = _NAMES.get(key)
    if known is None:
        if len(_NAMES) >= _MOST_NAMES:
            _NAMES.clear()
        known = site, None if is_inside(site, _STORES) else name_of(site, operator.name)
        _NAMES[key] = known
    return known[1]


_ACTIVE: Final[ContextVar[StepMode | None]] = ContextVar("step_mode", default=None)


@contextmanager
def steps_of(points: Points, forward: CodeType, module: nn.Module, values: object) -> Iterator[StepMode]:
    """Let the functions that the `forward` of `module` calls be steps of `points`."""
    active = _ACTIVE.get()
    if active is not None:
        with active.inside(points, forward):
            yield active
        return
    mode = StepMode(module)
    mode.give(values)
    token = _ACTIVE.set(mode)
    try:
        with mode, mode.inside(points, forward):
            yield mode
    finally:
        _ACTIVE.reset(token)
