"""Validators: each accepts exactly what it says, and says it in English."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest

from tico_config import ConfigError, FrozenMapping, Problem
from tico_config.validation import (
    as_float,
    check_boolean,
    check_choice,
    check_instance,
    check_integer,
    check_number,
    check_optional_integer,
    freeze,
    refuse,
)


@pytest.mark.parametrize(
    "found",
    [
        check_integer("f", 2, 2, 8),
        check_integer("f", 8, 2, 8),
        check_integer("f", 10**9, 2),
        check_optional_integer("f", None, 1),
        check_optional_integer("f", 4, 1, 4),
        check_number("f", 0, 0, 1),
        check_number("f", 1.0, 0, 1),
        check_number("f", -1e300),
        check_number("f", 10**400, 0),
        check_boolean("f", False),
        check_choice("f", "a", ("a", "b")),
        check_instance("f", "a", str | int, "text or an int"),
    ],
)
def test_values_inside_are_no_problem(found: Problem | None) -> None:
    """The ends are inside unless they are open."""
    assert found is None


@pytest.mark.parametrize(
    ("found", "text"),
    [
        (check_integer("f", 1, 2, 8), "f must be an integer from 2 to 8, got 1"),
        (check_integer("f", True, 0, 8), "f must be an integer from 0 to 8, got True"),
        (check_integer("f", 4.0, 2), "f must be an integer of at least 2, got 4.0"),
        (check_integer("f", "4", 2), "f must be an integer of at least 2, got '4'"),
        (check_optional_integer("f", 5, 1, 4), "f must be None or an integer from 1 to 4, got 5"),
        (check_number("f", "1", 0, 1), "f must be a number from 0 to 1, got '1'"),
        (check_number("f", True, 0, 1), "f must be a number from 0 to 1, got True"),
        (check_number("f", 0.0, 0, 1, open_low=True), "f must be a number above 0 and at most 1, got 0.0"),
        (check_number("f", 1, 0, 1, open_high=True), "f must be a number of at least 0 and below 1, got 1"),
        (check_number("f", -1, 0), "f must be a number of at least 0, got -1"),
        (check_number("f", 0, 0, open_low=True), "f must be a number above 0, got 0"),
        (check_number("f", 2, high=1), "f must be a number of at most 1, got 2"),
        (check_number("f", 2, high=1, open_high=True), "f must be a number below 1, got 2"),
        (check_number("f", math.inf), "f must be a finite number, got inf"),
        (check_number("f", math.nan, 0, 1), "f must be a number from 0 to 1, got nan"),
        (check_boolean("f", 1), "f must be True or False, got 1"),
        (check_choice("f", ["a"], ("a", "b")), "f must be one of 'a', 'b', got ['a']"),
        (check_instance("f", 1.0, str | int, "text or an int"), "f must be text or an int, got 1.0"),
    ],
)
def test_values_outside_are_described(found: Problem | None, text: str) -> None:
    """The problem says what the field may be and what it is."""
    assert str(found) == text


def test_refuse_raises_everything_at_once() -> None:
    """Checks that passed leave no trace; without a problem nothing is raised."""
    refuse(None, check_boolean("a", True))
    with pytest.raises(ConfigError) as caught:
        refuse(check_boolean("a", 0), None, check_boolean("b", 1))
    assert [problem.field for problem in caught.value.problems] == ["a", "b"]


def test_converters_leave_what_they_do_not_know_to_the_check() -> None:
    """An int becomes its float only where that is exact; other values come out as they went in."""
    assert [as_float(value) for value in (3, True, "3", None)] == [3.0, True, "3", None]
    assert isinstance(as_float(3), float)
    assert isinstance(as_float(2**53), int)
    assert math.copysign(1, float(str(as_float(-0.0)))) == 1


@pytest.mark.parametrize(
    ("value", "frozen"),
    [
        (
            {"b": [1], "a": {"c": (2, [3])}},
            FrozenMapping.of({"a": FrozenMapping.of({"c": (2, (3,))}), "b": (1,)}),
        ),
        ([{"a": 1}], (FrozenMapping.of({"a": 1}),)),
        ({0: 1}, {0: 1}),
        ("text", "text"),
    ],
)
def test_freeze_makes_mappings_and_lists_immutable(value: object, frozen: object) -> None:
    """At every depth; a mapping with other keys than strings is left to the check."""
    assert freeze(value) == frozen


@pytest.mark.parametrize("check", [check_integer, check_optional_integer])
def test_integers_of_subclasses_are_refused(check: Callable[[str, object, int], Problem | None]) -> None:
    """JSON would give back another type."""

    class Count(int):
        pass

    assert check("f", Count(3), 1) is not None
