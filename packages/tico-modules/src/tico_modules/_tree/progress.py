"""A progress bar where the extra `progress` is installed, silence where it is not."""

from __future__ import annotations

import time
from contextvars import ContextVar
from types import TracebackType
from typing import Final, Protocol

from typing_extensions import Self

_INTERVAL: Final = 0.1
"""How many seconds apart a bar is drawn again for a step inside of it."""


class _Bar(Protocol):
    def set_postfix_str(self, s: str, refresh: bool) -> None: ...

    def update(self) -> object: ...

    def refresh(self) -> object: ...

    def close(self) -> None: ...


class Progress:
    """A bar called `label` over `total` steps, or any number, with the time that is left.

    It is on standard error while that is a terminal, and gone afterwards. Inside another one that has a bar,
    its steps are told at the end of that bar's line. The environment variable `TQDM_DISABLE` hides all.

    >>> with Progress("layers", total=2, show=False) as progress:
    ...     progress.step("fc1: 0.1 s")
    """

    def __init__(self, label: str, *, total: int | None, show: bool = True, unit: str = "layer") -> None:
        self._label, self._total, self._unit = label, total, unit
        self._is_shown = show and total != 0
        self._bar: _Bar | None = None
        self._outer: Progress | None = None
        self._done = 0
        self._drawn = 0.0

    def __enter__(self) -> Self:
        """Start."""
        if self._is_shown:
            self._outer = _OUTER.get()
            if self._outer is None:
                self._bar = _bar(self._label, self._total, self._unit)
            if self._bar is not None:
                _OUTER.set(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._outer is not None:
            self._outer.tell("")
        if self._bar is not None:
            _OUTER.set(None)
            self._bar.close()

    def step(self, note: str = "") -> None:
        """Move on by one step, and show `note` beside the bar."""
        self._done += 1
        if self._outer is not None:
            of = "" if self._total is None else f"/{self._total}"
            self._outer.tell(f"{self._label} {self._done}{of} {note}".rstrip())
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()

    def tell(self, note: str) -> None:
        """Show `note` beside the bar, without a step."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            now = time.monotonic()
            if now - self._drawn > _INTERVAL:
                self._drawn = now
                self._bar.refresh()


_OUTER: Final[ContextVar[Progress | None]] = ContextVar("outer", default=None)
"""The progress that has a bar now."""


def _bar(label: str, total: int | None, unit: str) -> _Bar | None:
    """Return a bar, or None where the extra is not installed."""
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        return None
    # None disables it where standard error is no terminal.
    bar: _Bar = tqdm(total=total, desc=label, unit=unit, leave=False, disable=None)
    return bar
