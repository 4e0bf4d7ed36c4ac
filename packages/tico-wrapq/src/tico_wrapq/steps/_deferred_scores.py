"""Attention scores whose grids follow from each row, and wait for the mask that is applied to them later."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Final, TypeAlias, final

import attrs
import torch
from torch import Tensor

from tico_wrapq.steps._kept_scores import left_out_exponents, left_out_scores
from tico_wrapq.steps._operators import Function, Operator
from tico_wrapq.steps._score_tracing import RESHAPES, SOFTMAX, axis_of

MoveApart: TypeAlias = Callable[[Tensor, Tensor | None], Tensor]
"""Moves the result of a step to its grid, given which of its values are left out; None if all count."""

_ENDS: Final = frozenset({"exp", "dropout", "alpha_dropout", "rrelu"})
"""What gives each value by the one at its place, but ends a chain: powers, and what draws random numbers."""


@attrs.define(eq=False)
class _Waiting:
    """A tensor that was computed without grids; `again` computes it from its operands on their grids."""

    tensor: weakref.ref[Tensor]
    again: Callable[[Tensor | None], Tensor]

    def settle(self, left_out: Tensor | None) -> Tensor:
        """Return what takes the place of the tensor, the values in `left_out` not counting."""
        moved = self.again(left_out)
        self.again = lambda left_out: moved
        return moved


@final
class DeferredScores:
    """Holds back the grids of attention scores until the scores are masked.

    A grid per token spans a whole row, in which masked scores must not count. So the scores are computed in
    float first, up to the softmax or whatever else reads more than single values. There the mask is known,
    and all steps are computed again from the first one on, each with its grid.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Waiting] = {}

    def begin(self, scores: Tensor, move: MoveApart) -> None:
        """Hold the grid of `scores` back, to which `move` moves."""
        self._forget_dead()
        self._note(scores, lambda left_out: move(scores, left_out))

    def goes_on(self, operator: Operator, args: Iterable[object], kwargs: Mapping[str, object]) -> bool:
        """Whether a function gives values of what is held back, each by the one at its place."""
        if not self._known:
            return False
        by_value = operator.by_value and operator.name not in _ENDS
        plain = (by_value or operator.name in RESHAPES) and not operator.in_place and "out" not in kwargs
        return plain and any(True for _ in self._held(args, kwargs))

    def follow(
        self,
        function: Function,
        operator: Operator,
        args: tuple[object, ...],
        kwargs: Mapping[str, object],
        result: Tensor,
        move: MoveApart,
    ) -> Tensor:
        """Hold the `result` of such a function back too, and return it.

        Where it has more values than what is held back, nothing waits any longer.
        """
        if any(each.numel() != result.numel() for each in self._held(args, kwargs)):
            args, kwargs = self._settled(operator, args, kwargs)
            return move(_called(function, args, kwargs), None)

        def again(left_out: Tensor | None) -> Tensor:
            def moved(value: object) -> object:
                waiting = self._waiting(value)
                if waiting is None or not isinstance(value, Tensor):
                    return value
                return waiting.settle(None if left_out is None else left_out.reshape(value.shape))

            names = {name: moved(each) for name, each in kwargs.items()}
            return move(_called(function, tuple(map(moved, args)), names), left_out)

        self._note(result, again)
        return result

    def given_to(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[tuple[object, ...], Mapping[str, object]]:
        """Return the arguments of a function, on their grids if it reads more than single values."""
        if not self._known or self.goes_on(operator, args, kwargs):
            return args, kwargs
        return self._settled(operator, args, kwargs)

    def _settled(
        self, operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]
    ) -> tuple[tuple[object, ...], Mapping[str, object]]:
        def settle(value: object) -> object:
            if isinstance(value, Tensor):
                waiting = self._waiting(value)
                return value if waiting is None else waiting.settle(_left_out(operator, value, args, kwargs))
            if isinstance(value, tuple | list):
                return type(value)(map(settle, value)) if type(value) in (tuple, list) else value
            return value

        return tuple(map(settle, args)), {name: settle(each) for name, each in kwargs.items()}

    def write_to(self, output: Iterable[Tensor]) -> None:
        """Write to tensors of the model's output what takes their place: nothing can read that any more."""
        held = [(each, waiting) for each in output if (waiting := self._waiting(each)) is not None]
        for tensor, waiting in held:
            with torch.no_grad(), torch._C.DisableTorchFunction():
                tensor.copy_(waiting.settle(left_out_scores(tensor)))

    def _held(self, args: Iterable[object], kwargs: Mapping[str, object]) -> Iterable[Tensor]:
        for each in (*args, *kwargs.values()):
            if isinstance(each, Tensor) and self._waiting(each) is not None:
                yield each

    def _waiting(self, value: object) -> _Waiting | None:
        found = self._known.get(id(value))
        return found if found is not None and found.tensor() is value else None

    def _note(self, tensor: Tensor, again: Callable[[Tensor | None], Tensor]) -> None:
        self._known[id(tensor)] = _Waiting(weakref.ref(tensor), again)

    def _forget_dead(self) -> None:
        self._known = {key: each for key, each in self._known.items() if each.tensor() is not None}


def _called(function: Function, args: tuple[object, ...], kwargs: Mapping[str, object]) -> Tensor:
    """Return what `function` has given before, and gives a tensor again."""
    result: Tensor = function(*args, **kwargs)  # type: ignore[assignment]
    return result


def _left_out(
    operator: Operator, scores: Tensor, args: tuple[object, ...], kwargs: Mapping[str, object]
) -> Tensor | None:
    """Return which of the `scores` that a function reads don't count, as they are without any grid."""
    if operator.name in SOFTMAX and axis_of(args, kwargs) not in (-1, scores.ndim - 1):
        return None
    if operator.name == "exp":
        return left_out_exponents(scores)
    return left_out_scores(scores)
