"""Which rows of tensors that were picked from others are no padding."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from typing import final

from torch import Tensor


@final
class PickedRows:
    """Follows rows that an index picks, as experts are given some: their shape tells nothing of padding.

    What is known of a tensor is a mask whose shape is that of the tensor's first axes. What is computed of
    the tensor, and has the same first axes, has the same mask.

    >>> import torch
    >>> picked, rows = PickedRows(), torch.zeros(2, 4)
    >>> picked.note(rows, torch.tensor([False, True]))
    >>> picked.shared([rows], rows * 2).tolist()
    [False, True]
    """

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def __bool__(self) -> bool:
        """Whether anything is known."""
        return bool(self._known)

    def forget(self) -> None:
        """Know of no tensor."""
        self._known.clear()

    def real(self, x: Tensor) -> Tensor | None:
        """Return which places in the first axes of `x` are no padding; None where nothing was picked."""
        found = self._known.get(id(x)) if self._known else None
        return None if found is None or found[0]() is not x else found[1]

    def note(self, x: Tensor, real: Tensor | None) -> None:
        """Know which places in the first axes of `x` are no padding: where `real` is true."""
        if real is not None:
            self._known[id(x)] = weakref.ref(x), real

    def shared(self, given: Iterable[Tensor], result: Tensor) -> Tensor | None:
        """Return what is known of one of the tensors `given` and holds of their `result`, too.

        It does where the first axes are the same.
        """
        known = (self.real(each) for each in given)
        return next((each for each in known if each is not None and _begins(result, each)), None)


def moved_rows(real: Tensor, source: Tensor, move: Callable[[Tensor], object]) -> Tensor | None:
    """Return which rows of what `move` makes of `source` are real, given which of its own are.

    None where what it moves is no tensor.

    >>> import torch
    >>> moved_rows(torch.tensor([True, False]), torch.zeros(2, 3), lambda each: each[[1, 1, 0]]).tolist()
    [False, False, True]
    """
    each = move(real.view(*real.shape, *(1,) * (source.ndim - real.ndim)).expand(source.shape))
    while isinstance(each, Tensor) and each.ndim > 1 and bool((each == each[..., :1]).all()):
        each = each[..., 0]
    return each if isinstance(each, Tensor) else None


def _begins(x: Tensor, real: Tensor) -> bool:
    return x.shape[: real.ndim] == real.shape
