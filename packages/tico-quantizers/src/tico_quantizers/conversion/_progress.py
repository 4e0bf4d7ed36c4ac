"""A progress bar where the extra `progress` is installed, silence where it is not."""

from __future__ import annotations

from importlib.util import find_spec
from types import TracebackType
from typing import Protocol

from typing_extensions import Self


class _Bar(Protocol):
    def set_postfix_str(self, s: str, refresh: bool) -> None: ...

    def update(self) -> object: ...

    def close(self) -> None: ...


class Progress:
    """A bar called `label` over `total` steps, or any number, on standard error while it is a terminal.

    >>> with Progress("layers", total=2, show=False) as progress:
    ...     progress.step("fc1: 0.1 s")
    """

    def __init__(self, label: str, *, total: int | None, show: bool, unit: str = "layer") -> None:
        is_shown = show and total != 0 and find_spec("tqdm") is not None
        self._bar = _bar(label, total, unit) if is_shown else None

    def __enter__(self) -> Self:
        """Start."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.close()

    def step(self, note: str = "") -> None:
        """Move on by one step, and show `note` beside the bar."""
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update()


def _bar(label: str, total: int | None, unit: str) -> _Bar:
    from tqdm import tqdm

    # None disables it where standard error is no terminal.
    bar: _Bar = tqdm(total=total, desc=label, unit=unit, leave=False, disable=None)
    return bar
