"""The table of what the runtimes computed, printed when all are through."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from runtime_runs import Outcome

Tell = Callable[[str, Outcome], None]

_LINES: list[str] = []


@pytest.fixture
def tell() -> Tell:
    """Return what puts a line into the table: the name and version of a runtime, and the outcome."""

    def add(runtime: str, outcome: Outcome) -> None:
        _LINES.append(f"| {runtime} | {outcome} |")

    return add


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    if _LINES:
        head = "| runtime | model | steps | graph, dB | runtime, dB | run by the runtime |"
        terminalreporter.write_line("\n".join([head, "|---|---|---|---|---|---|", *_LINES]))
