"""Padding among rows that modules pick, followed through their steps."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Final, Protocol

import torch
from torch import Tensor

from tico_wrapq.base import PickedRows, moved_rows
from tico_wrapq.steps._data_following import tensors_in
from tico_wrapq.steps._operators import Function, Operator

_PICKS: Final = frozenset({"getitem", "index_select", "take_along_dim", "gather"})
_REPEATS: Final = frozenset({"repeat_interleave", "repeat", "tile"})
_SHAPES: Final = frozenset(
    {
        *(
            "view",
            "view_as",
            "reshape",
            "reshape_as",
            "flatten",
            "unflatten",
            "permute",
            "transpose",
            "movedim",
        ),
        *("squeeze", "unsqueeze", "expand", "expand_as", "broadcast_to", "select", "narrow", "flip", "roll"),
    }
)
_ADD_ROWS: Final = frozenset(
    {"index_add", "scatter_add", "scatter_reduce", "index_copy", "index_put", "scatter"}
)
_MOVES: Final = _PICKS | _REPEATS | _SHAPES


class Passage(Protocol):
    """A forward pass in which some tokens are padding."""

    picked: PickedRows

    def real_rows(self, x: Tensor) -> Tensor | None:
        """Return which rows of `x` are no padding, as far as its shape tells; None if all are."""


def follow_rows(
    passage: Passage,
    function: Function,
    operator: Operator,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    results: object,
) -> None:
    """Note which rows of the `results` of a function are no padding, where rows of its inputs were picked.

    Rows that an index picks of a tensor whose shape tells of padding are real as they were in that tensor.
    """
    if isinstance(results, Tensor):
        _note(passage, results, _known(passage, function, operator, args, kwargs, results))
    elif passage.picked:
        for each in tensors_in(results):
            _note(passage, each, passage.picked.shared(tensors_in((args, kwargs)), each))


def _known(
    passage: Passage,
    function: Function,
    operator: Operator,
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    result: Tensor,
) -> Tensor | None:
    source = args[0] if operator.name in _MOVES and args else None
    if isinstance(source, Tensor):
        real = passage.picked.real(source)
        if real is None and _may_pick(operator, args, kwargs):
            real = passage.real_rows(source)
        if any(isinstance(each, torch.dtype) for each in (*args[1:], *kwargs.values())):
            return None  # a view of the same bits as other numbers
        return None if real is None else moved_rows(real, source, partial(_again, function, args[1:], kwargs))
    if not passage.picked:
        return None
    into = operator.in_place or operator.name in _ADD_ROWS
    return passage.picked.shared(tensors_in(args[:1] if into else (args, kwargs)), result)


def _note(passage: Passage, x: Tensor, real: Tensor | None) -> None:
    """Note what is known of `x`, but for what its shape tells as well."""
    told = None if real is None else passage.real_rows(x)
    if real is not None and told is not None and real.ndim <= told.ndim:
        by_shape = bool((real.view(*real.shape, *(1,) * (told.ndim - real.ndim)) == told).all())
        real = None if by_shape else real
    passage.picked.note(x, real)


def _again(function: Function, rest: tuple[object, ...], kwargs: Mapping[str, object], x: Tensor) -> object:
    return function(x, *rest, **kwargs)


def _may_pick(operator: Operator, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """Whether rows are picked, by an index that is a tensor, or repeated."""
    by_index = operator.name in _PICKS and any(True for _ in tensors_in((args[1:], kwargs)))
    return by_index or operator.name in _REPEATS
