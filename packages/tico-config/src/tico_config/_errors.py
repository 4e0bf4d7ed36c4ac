"""The errors of every layer: one sentence a problem, all problems of an input at once."""

from __future__ import annotations

import reprlib

import attrs

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_LONGEST = 10_000


@attrs.frozen(kw_only=True)
class Problem:
    """One thing that is wrong: where, what was expected, what was got, and the way out.

    >>> str(Problem(module="layers.0", field="bits", value=0, expected="2 to 16", remedy="take 4"))
    'layers.0: bits must be 2 to 16, got 0; take 4'
    """

    expected: str
    value: object = None
    module: str | None = None
    field: str | None = None
    remedy: str | None = None

    def __str__(self) -> str:
        """Return the problem as one sentence without its full stop."""
        where = f"{self.module}: " if self.module else ""
        what = f"{self.field} must be" if self.field else "expected"
        way_out = f"; {self.remedy}" if self.remedy else ""
        return f"{where}{what} {self.expected}, got {_described(self.value)}{way_out}"


def _described(value: object) -> str:
    """Return a short text for `value`; strings that describe a finding are kept as they are."""
    if not isinstance(value, Found):
        return _SHORT.repr(value)
    return str(value) if len(value) <= _LONGEST else f"{value[:_LONGEST]} … ({len(value)} characters)"


class Found(str):
    """A description of what was found, shown without quotes in an error.

    >>> str(Problem(expected="a prepared model", value=Found("one that was not prepared")))
    'expected a prepared model, got one that was not prepared'
    """

    __slots__ = ()


class TicoError(Exception):
    """Any error that this library raises on purpose.

    Each subclass also derives from the builtin that a caller would catch.
    The attributes `module`, `field`, `value` and `expected` are those of the first of `problems`.

    >>> error = TicoError(Problem(field="bits", value=0, expected="an integer from 2 to 16"))
    >>> str(error), error.field
    ('bits must be an integer from 2 to 16, got 0.', 'bits')
    """

    def __init__(self, first: Problem, *others: Problem) -> None:
        super().__init__(first, *others)
        self.problems: tuple[Problem, ...] = (first, *others)

    @property
    def module(self) -> str | None:
        """Full path of the module the first problem is about."""
        return self.problems[0].module

    @property
    def field(self) -> str | None:
        """Name of the field or argument the first problem is about."""
        return self.problems[0].field

    @property
    def value(self) -> object:
        """What was got."""
        return self.problems[0].value

    @property
    def expected(self) -> str:
        """What was expected."""
        return self.problems[0].expected

    def __str__(self) -> str:
        """Return all problems, a sentence each."""
        return " ".join(f"{problem}." for problem in self.problems)


class ConfigError(TicoError, ValueError):
    """A configuration that cannot be meant.

    >>> isinstance(ConfigError(Problem(expected="a config")), ValueError)
    True
    """


class LifecycleError(TicoError, RuntimeError):
    """A call that comes too early, too late or twice.

    >>> isinstance(LifecycleError(Problem(expected="a prepared model")), RuntimeError)
    True
    """


class CalibrationError(TicoError, RuntimeError):
    """Calibration data that are missing or do not fit.

    >>> isinstance(CalibrationError(Problem(expected="data")), RuntimeError)
    True
    """


class NumericsError(TicoError, ArithmeticError):
    """Values that no grid can represent: NaN, infinity, a scale that is not a normal float.

    >>> isinstance(NumericsError(Problem(expected="finite values")), ArithmeticError)
    True
    """


class UnsupportedError(TicoError, TypeError):
    """A kind of object that this library does not handle.

    >>> isinstance(UnsupportedError(Problem(expected="a tensor")), TypeError)
    True
    """


class ArtifactError(TicoError, ValueError):
    """A file that is damaged, foreign, or of another version.

    >>> isinstance(ArtifactError(Problem(expected="a whole file")), ValueError)
    True
    """


class MissingExtraError(TicoError, ImportError):
    """An optional dependency that is not installed.

    >>> isinstance(MissingExtraError(Problem(expected="installed")), ImportError)
    True
    """
