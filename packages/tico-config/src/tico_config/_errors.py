"""The errors of every layer: all problems of an input at once, each of them one sentence."""

from __future__ import annotations

import errno

from tico_config._problem import Problem
from tico_config._problem_list import describe_problems


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
        """Return one problem as a sentence; several as a list, one a line, with equal ones grouped."""
        return describe_problems(self.problems)


class ConfigError(TicoError, ValueError):
    """A configuration that cannot be meant.

    >>> isinstance(ConfigError(Problem(expected="a config")), ValueError)
    True
    """


class CallError(ConfigError, TypeError):
    """A config or spec that is called with fields that it does not have.

    >>> isinstance(CallError(Problem(expected="a field")), TypeError)
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


class DiskFullError(TicoError, OSError):
    """A disk without room for what is to be written.

    >>> isinstance(DiskFullError(Problem(expected="room")), OSError)
    True
    """

    def __init__(self, first: Problem, *others: Problem) -> None:
        super().__init__(first, *others)
        self.errno = errno.ENOSPC
