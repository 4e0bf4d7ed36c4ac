"""What a cell of the table says."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

import attrs

from tico_config import TicoError
from zoo._trial import EXACT

FAULT: Final = "FAULT"
LOW: Final = "low"
REFUSED: Final = "refused"
FLOAT: Final = "float"
ABSENT: Final = "-"


class FloatModelError(Exception):
    """The float model can't do what the cell asks for."""


class RefusedError(Exception):
    """Another process has refused what the cell asks for."""


class WrongError(Exception):
    """The quantized model gives something that it must not give."""


@attrs.frozen
class Cell:
    """What the table shows, and a sentence that says why where it shows no figure."""

    shown: str
    reason: str = ""

    @property
    def is_right(self) -> bool:
        """Whether nothing is left to be explained."""
        return self.shown != FAULT and LOW not in self.shown


def measured(found: float, bound: float) -> Cell:
    """Return the cell of a signal-to-noise ratio in dB, which is right from `bound` on."""
    if math.isnan(found):
        return Cell(FAULT, "the output is not finite")
    if found > EXACT:
        return Cell("ok")
    low = f"{LOW} " if found < bound else ""
    return Cell(f"{low}{found:.0f} dB", f"rounding at random gives {bound:.0f} dB at least" if low else "")


def tried(column: Callable[[], Cell]) -> Cell:
    """Return the cell that `column` fills, or the one for the error that it raises."""
    try:
        return column()
    except FloatModelError as error:
        return Cell(FLOAT, str(error))
    except RefusedError as error:
        return Cell(REFUSED, _line(str(error)))
    except TicoError as error:
        return Cell(REFUSED, _sentence(error))
    except WrongError as error:
        return Cell(FAULT, str(error))
    except Exception as error:  # noqa: BLE001  # a fault, which the table is there to show
        return Cell(FAULT, f"{type(error).__name__}: {_line(str(error))}")


def _sentence(error: TicoError) -> str:
    first, more = error.problems[0], len(error.problems) - 1
    return f"{_line(first.sentence or str(first))}{f' (and {more} more)' if more else ''}"


def _line(text: str) -> str:
    return " ".join(text.split())[:200]
