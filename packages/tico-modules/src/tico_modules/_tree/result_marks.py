"""What other libraries want to find on a converted model, put there by functions that are registered."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

_MARKS: list[Callable[[nn.Module], None]] = []


def add_result_mark(mark: Callable[[nn.Module], None]) -> None:
    """Let `mark` be called with every model that `convert` and `load_quantized` return from now on.

    It is called once they are done, and must not fail. A function that is registered already stays so.
    """
    if mark not in _MARKS:
        _MARKS.append(mark)


def mark_result(model: nn.Module) -> None:
    """Call every registered function with `model`."""
    for mark in _MARKS:
        mark(model)
