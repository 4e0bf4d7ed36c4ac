"""Checks for the fields of a value: each returns the problem, or None."""

from __future__ import annotations

import math
from collections.abc import Collection
from types import UnionType

from tico_config._errors import ConfigError, Problem


def refuse(*found: Problem | None) -> None:
    """Raise one `ConfigError` with every problem in `found`, if there is any."""
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise ConfigError(*problems)


def integer(field: str, value: object, low: int, high: int | None = None) -> Problem | None:
    """Require an int (not a bool) from `low` to `high`."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return None
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"
    return Problem(field=field, value=value, expected=f"an integer {span}")


def optional_integer(field: str, value: object, low: int) -> Problem | None:
    """Require None or an int of at least `low`."""
    problem = None if value is None else integer(field, value, low)
    return problem and Problem(field=field, value=value, expected=f"None or {problem.expected}")


def number(
    field: str, value: object, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> Problem | None:
    """Require a finite float between `low` and `high`, either end excluded where it is open."""
    if isinstance(value, float) and math.isfinite(value):
        above = value > low if open_low else value >= low
        below = value < high if open_high else value <= high
        if above and below:
            return None
    ends = f"{'above' if open_low else 'from'} {low:g} {'and below' if open_high else 'to'} {high:g}"
    return Problem(field=field, value=value, expected=f"a number {ends}")


def boolean(field: str, value: object) -> Problem | None:
    """Require True or False."""
    return None if isinstance(value, bool) else Problem(field=field, value=value, expected="True or False")


def instance(field: str, value: object, kinds: type | UnionType, expected: str) -> Problem | None:
    """Require an instance of one of `kinds`, described by `expected`."""
    return None if isinstance(value, kinds) else Problem(field=field, value=value, expected=expected)


def one_of(field: str, value: object, choices: Collection[str]) -> Problem | None:
    """Require one of the strings in `choices`."""
    if isinstance(value, str) and value in choices:
        return None
    return Problem(field=field, value=value, expected=f"one of {', '.join(map(repr, choices))}")


def as_float(value: object) -> object:
    """Return an int as the float it stands for (and -0.0 as 0.0); leave anything else for the check."""
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    return value + 0.0 if type(value) is float else value
