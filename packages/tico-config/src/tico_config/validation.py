"""Checks and converters for the fields of a config or a spec.

A check takes the name of the field and its value. It returns a `Problem`, or None where the value is fine;
`refuse` raises what the checks of one value returned. The built-in configs are made of the same functions.

>>> str(check_integer("bits", 99, 2, 8))
'bits must be an integer from 2 to 8, got 99'
"""

from __future__ import annotations

import math
from collections.abc import Collection
from types import UnionType

from tico_config._errors import ConfigError
from tico_config._frozen_mapping import freeze
from tico_config._problem import Problem

__all__ = [
    "as_float",
    "check_boolean",
    "check_choice",
    "check_folder",
    "check_instance",
    "check_integer",
    "check_number",
    "check_optional_integer",
    "freeze",
    "refuse",
]


_LARGEST = 2**63 - 1


def refuse(*found: Problem | None) -> None:
    """Raise every problem in `found` as one error; None stands for a check that passed.

    Raises:
        ConfigError: there is at least one problem.

    >>> refuse(check_integer("bits", 4, 2, 8), check_boolean("symmetric", True))
    """
    problems = [problem for problem in found if problem is not None]
    if problems:
        raise ConfigError(*problems)


def check_folder(field: str, value: object) -> Problem | None:
    """Require None or text that can be the path of a folder.

    >>> check_folder("checkpoint_dir", "").expected
    'None or the path of a folder, as text'
    """
    if value is None or (isinstance(value, str) and value and "\0" not in value):
        return None
    return Problem(field=field, value=value, expected="None or the path of a folder, as text")


def check_integer(field: str, value: object, low: int, high: int | None = None) -> Problem | None:
    """Require an int (not a bool) from `low` to `high`, both included; without a `high`, one of 64 bits.

    >>> check_integer("steps", 0, 1).expected
    'an integer of at least 1'
    """
    if type(value) is int and low <= value <= (_LARGEST if high is None else high):
        return None
    span = f"from {low} to {high}" if high is not None else f"of at least {low}"
    if type(value) is int and value > _LARGEST:
        span = f"from {low} to {_LARGEST if high is None else high}"
    return Problem(field=field, value=value, expected=f"an integer {span}")


def check_optional_integer(field: str, value: object, low: int, high: int | None = None) -> Problem | None:
    """Require None, or an int (not a bool) from `low` to `high`, both included.

    >>> check_optional_integer("group_size", 0, 1).expected
    'None or an integer of at least 1'
    """
    problem = None if value is None else check_integer(field, value, low, high)
    return problem and Problem(field=field, value=value, expected=f"None or {problem.expected}")


def check_number(
    field: str,
    value: object,
    low: float | None = None,
    high: float | None = None,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Problem | None:
    """Require a finite float or int (not a bool) from `low` to `high`, an end excluded where it is open.

    An end that is None is no limit.

    >>> check_number("damping", 0.0, 0, 1, open_low=True).expected
    'a number above 0 and at most 1'
    """
    if type(value) is int or (isinstance(value, float) and math.isfinite(value)):
        above = low is None or (value > low if open_low else value >= low)
        below = high is None or (value < high if open_high else value <= high)
        if above and below:
            return None
    return Problem(field=field, value=value, expected=_describe_span(low, high, open_low, open_high))


def _describe_span(low: float | None, high: float | None, open_low: bool, open_high: bool) -> str:
    if low is not None and high is not None and not open_low and not open_high:
        return f"a number from {low:g} to {high:g}"
    ends = []
    if low is not None:
        ends.append(f"above {low:g}" if open_low else f"of at least {low:g}")
    if high is not None:
        least = "at most" if ends else "of at most"
        ends.append(f"below {high:g}" if open_high else f"{least} {high:g}")
    return " ".join(["a number" if ends else "a finite number", " and ".join(ends)]).strip()


def check_boolean(field: str, value: object) -> Problem | None:
    """Require True or False.

    >>> check_boolean("symmetric", 1).expected
    'True or False'
    """
    return None if isinstance(value, bool) else Problem(field=field, value=value, expected="True or False")


def check_instance(field: str, value: object, kinds: type | UnionType, expected: str) -> Problem | None:
    """Require an instance of one of `kinds`, which `expected` describes.

    >>> str(check_instance("name", 3, str, "the name of a variant"))
    'name must be the name of a variant, got 3'
    """
    return None if isinstance(value, kinds) else Problem(field=field, value=value, expected=expected)


def check_choice(field: str, value: object, choices: Collection[str]) -> Problem | None:
    """Require one of the strings in `choices`.

    >>> check_choice("reference", "mode", ("mean", "median")).expected
    "one of 'mean', 'median'"
    """
    if isinstance(value, str) and value in choices:
        return None
    return Problem(field=field, value=value, expected=f"one of {', '.join(map(repr, choices))}")


def as_float(value: object) -> object:
    """Convert an int to the equal float and -0.0 to 0.0; return anything else unchanged, for the check.

    As the converter of a float field it makes ``1`` and ``1.0`` one config with one text.

    >>> as_float(1), as_float("1")
    (1.0, '1')
    """
    if type(value) is int and abs(value) < 2**53:
        return float(value)
    return float(value) + 0.0 if isinstance(value, float) else value
