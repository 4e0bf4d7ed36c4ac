"""Changes of some fields of a value, as overrides make them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

import attrs

from tico_config._errors import ConfigError
from tico_config._named_fields import unknown_field
from tico_config._problem import Problem, describe, move
from tico_config._quant_spec import QuantSpec
from tico_config.validation import refuse

A = TypeVar("A", bound=attrs.AttrsInstance)


def apply_partial(whole: A, field: str, partial: object, fixed: frozenset[str] = frozenset()) -> A:
    """Return `whole` with the fields that `partial` maps to new values, except those in `fixed`.

    `field` names the place of `partial` in an error.

    Raises:
        ConfigError: `partial` is no such mapping, or the changed value is not valid.

    >>> from tico_config import GPTQConfig
    >>> apply_partial(GPTQConfig(), "here", {"bits": 8}).bits
    8
    """
    names = [attribute.name for attribute in attrs.fields(type(whole)) if attribute.name not in fixed]
    if not isinstance(partial, Mapping) or not partial:
        expected = f"a non-empty mapping with some of {', '.join(names)}"
        raise ConfigError(Problem(field=field, value=partial, expected=expected))
    refuse(*(_unknown_field(field, name, names, partial[name]) for name in partial if name not in names))
    try:
        changed: A = attrs.evolve(whole, **partial)  # type: ignore[misc]  # attrs wants a concrete class
        return changed
    except ConfigError as error:
        raise ConfigError(*(move(problem, field) for problem in error.problems)) from None


def partial_problems(
    whole: A, field: str, partial: object, fixed: frozenset[str] = frozenset()
) -> tuple[Problem, ...]:
    """Return what is wrong with `partial` as a change of some fields of `whole`.

    >>> from tico_config import GPTQConfig
    >>> [problem.field for problem in partial_problems(GPTQConfig(), "here", {"bits": 99})]
    ['here.bits']
    """
    try:
        apply_partial(whole, field, partial, fixed)
    except ConfigError as error:
        return error.problems
    return ()


def _unknown_field(field: str, name: str, names: list[str], value: object) -> Problem:
    sentence = f"{field} names {describe(name)}, which is no field that can be set there"
    problem = attrs.evolve(unknown_field(field, name, names), field=field, sentence=sentence)
    if not isinstance(value, Mapping | QuantSpec):
        return problem
    nested = "overrides are not nested, write each path as one key with dots: 'model.layers.0.q_proj'"
    return attrs.evolve(problem, remedy=nested)
