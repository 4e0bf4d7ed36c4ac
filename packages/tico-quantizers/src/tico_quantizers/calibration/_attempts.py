"""Attempts at runs that a model may not allow."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from tico_config import TicoError

T = TypeVar("T")


def attempted_twice(action: Callable[[], T]) -> T | None:
    """Return what `action` gives; None if it raises, and raises when it is tried again.

    Raises:
        Exception: one that does not come again, such as a lack of memory; it tells nothing of the model.

    >>> attempted_twice(lambda: 1 // 0) is None
    True
    """
    try:
        return action()
    except TicoError:
        raise
    except Exception:
        if _raises(action):
            return None
        raise


def _raises(action: Callable[[], object]) -> bool:
    try:
        action()
    except Exception:  # noqa: BLE001  # whatever the user's modules raise
        return True
    return False
