"""Progress: one line on a terminal, nothing anywhere else."""

from __future__ import annotations

import functools
import io
import re
from contextlib import redirect_stderr

import pytest
import tqdm

from tico_modules import Progress


class Terminal(io.StringIO):
    """Text that says it is a terminal, with every drawing of the line."""

    def isatty(self) -> bool:
        """Say so."""
        return True

    @property
    def lines(self) -> list[str]:
        """What was drawn, one after the other."""
        return [line.strip() for line in re.split("[\r\n]", self.getvalue()) if line.strip()]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Terminal:
    """Return a terminal on which each step is drawn, and not some a second."""
    monkeypatch.setattr("tqdm.tqdm", functools.partial(tqdm.tqdm, mininterval=0))
    monkeypatch.setattr("tico_modules._tree.progress._INTERVAL", -1.0)
    return Terminal()


def work(count: int = 2) -> None:
    """Show two steps, in each of which others are shown."""
    with Progress("outer", total=count, unit="block") as outer:
        for number in range(count):
            with Progress("inner", total=3) as inner:
                for _ in range(3):
                    inner.step("note")
            outer.step(f"block {number}")


def test_a_bar_has_steps_and_the_time_that_is_left(terminal: Terminal) -> None:
    """The line says how many of how many, and is gone in the end."""
    with redirect_stderr(terminal):
        work()
    assert any(re.search(r"outer:.* 1/2 \[\d\d:\d\d<", line) for line in terminal.lines)
    assert terminal.getvalue().endswith("\r")
    assert "\n" not in terminal.getvalue()


def test_steps_inside_of_another_one_are_on_its_line(terminal: Terminal) -> None:
    """Each drawing begins with the outer label; the inner one stands behind it, and goes away."""
    with redirect_stderr(terminal):
        work()
    assert all(line.startswith("outer:") for line in terminal.lines)
    assert any("inner 2/3 note" in line for line in terminal.lines)
    assert "inner" not in terminal.lines[-1]


def test_a_bar_after_another_one_is_one_of_its_own(terminal: Terminal) -> None:
    """Also after an exception, which ends both bars."""
    with redirect_stderr(terminal):
        with pytest.raises(ZeroDivisionError), Progress("first", total=1), Progress("inside", total=1):
            raise ZeroDivisionError
        with Progress("second", total=1) as second:
            second.step()
    assert terminal.lines[-1].startswith("second:")


def test_no_bar_is_drawn_where_standard_error_is_no_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    """Neither on standard error nor on standard output."""
    work()
    assert capfd.readouterr() == ("", "")


def test_no_bar_is_drawn_where_none_is_wanted(terminal: Terminal) -> None:
    """Steps inside are then shown by themselves."""
    with redirect_stderr(terminal), Progress("hidden", total=2, show=False) as hidden:
        hidden.step("unseen")
        with Progress("shown", total=1) as shown:
            shown.step()
    assert terminal.lines
    assert all(line.startswith("shown:") for line in terminal.lines)
