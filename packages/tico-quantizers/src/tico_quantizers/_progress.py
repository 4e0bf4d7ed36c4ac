"""A progress bar where the extra `progress` is installed, silence where it is not."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from importlib.util import find_spec
from typing import TypeVar

T = TypeVar("T")


def progress(items: Sequence[T], label: str, *, show: bool) -> Iterable[T]:
    """Return `items`, with a bar called `label` on standard error while they are used up.

    >>> list(progress([1, 2], "layers", show=False))
    [1, 2]
    """
    if not show or not items or find_spec("tqdm") is None:
        return items
    from tqdm import tqdm

    # None disables it where standard error is no terminal.
    bar: Iterable[T] = tqdm(items, desc=label, unit="block", leave=False, disable=None)
    return bar
