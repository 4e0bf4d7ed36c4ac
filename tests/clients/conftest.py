"""The table of clients: what each of them does with a model of each kind.

A file here is about one client, named in its `CLIENT`, a distribution. Each test tries the float model first,
for control, and then the converted one. A test of a refusal says so by ``refused(reason)``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib.metadata import version

import attrs
import pytest
import torch

import tico.quantization.integrations  # noqa: F401  # registers
from client_models import KINDS

REFUSED = "refused"


@attrs.frozen
class Cell:
    """The outcome of one trial on a model of one kind."""

    client: str
    trial: str
    kind: str
    outcome: str


_CELLS: list[Cell] = []


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """Return the kind of the converted model, each in its turn."""
    name: str = request.param
    return name


@pytest.fixture
def refused(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Return what notes that the trial is refused, and why."""
    return lambda reason: record_property(REFUSED, reason)


@pytest.fixture(autouse=True)
def grad_mode_is_left_alone() -> Iterator[None]:
    """Fail where a client leaves gradients switched off."""
    yield
    assert torch.is_grad_enabled()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Function, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Note the outcome of each trial."""
    report: pytest.TestReport = yield  # type: ignore[assignment]  # pytest's wrappers are sent one
    decided = report.when == "call" or not report.passed
    if decided and hasattr(item.module, "CLIENT"):
        kinds = getattr(item, "callspec", None)
        kind = "" if kinds is None else kinds.params.get("kind", "")
        name = item.originalname.removeprefix("test_").replace("_", " ")
        _CELLS.append(Cell(item.module.CLIENT, name, kind, _outcome(report)))
    return report  # type: ignore[return-value]  # as above


def _outcome(report: pytest.TestReport) -> str:
    reasons = [str(value) for name, value in report.user_properties if name == REFUSED]
    if report.failed:
        return "FAILS"
    if report.skipped:
        return "n.a."
    return f"refused: {reasons[0]}" if reasons else "works"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, a line for each trial; a trial with one outcome for all kinds says it once."""
    terminalreporter.section("clients")
    rows = [("client", "version", "trial", "outcome"), *_rows()]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for row in rows:
        first = "  ".join(text.ljust(width) for text, width in zip(row[:3], widths, strict=True))
        terminalreporter.write_line(f"{first}  {row[3]}")


def _rows() -> Iterator[tuple[str, str, str, str]]:
    trials = dict.fromkeys((cell.client, cell.trial) for cell in _CELLS)
    for client, trial in sorted(trials):
        kinds: dict[str, list[str]] = {}
        for cell in _CELLS:
            if (cell.client, cell.trial) == (client, trial):
                of_outcome = kinds.setdefault(cell.outcome, [])
                of_outcome += [cell.kind] if cell.kind and cell.kind not in of_outcome else []
        outcomes = [
            outcome if len(kinds) == 1 and len(names) in (0, len(KINDS)) else f"{', '.join(names)}: {outcome}"
            for outcome, names in kinds.items()
        ]
        yield client, version(client), trial, "; ".join(outcomes)
