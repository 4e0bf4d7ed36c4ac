"""The progress that libraries show as they load a folder."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from typing import TextIO


@contextmanager
def without_progress() -> Iterator[None]:
    """Drop bars meanwhile, where standard error is no terminal but a log; other lines are written."""
    if sys.stderr is None or sys.stderr.isatty():
        yield
        return
    with redirect_stderr(_WithoutBars(sys.stderr)):
        yield


class _WithoutBars(StringIO):
    """A stream that leaves out what begins at the start of its line again, and the end of such lines."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self.stream = stream
        self.bar = False

    def write(self, text: str, /) -> int:
        """Write `text`, unless it is a part of a bar."""
        ends, self.bar = self.bar and text == "\n", text.startswith("\r")
        return len(text) if self.bar or ends else self.stream.write(text)

    def flush(self) -> None:
        """Write what is held back."""
        self.stream.flush()
