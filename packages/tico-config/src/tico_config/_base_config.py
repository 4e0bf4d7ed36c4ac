"""What every algorithm's config has in common: a name, overrides, and how they resolve."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import attrs

from tico_config._errors import ConfigError, Found, Problem
from tico_config._frozen_mapping import FrozenMapping, frozen_value, is_hashable
from tico_config._overrides import pattern_problems
from tico_config._validation import refuse

T_co = TypeVar("T_co", covariant=True)
A = TypeVar("A", bound=attrs.AttrsInstance)


@attrs.frozen
class Resolution(Generic[T_co]):
    """What holds for a path, and why: `origin` names the field or the override that decided.

    >>> Resolution(8, "defaults").origin
    'defaults'
    """

    spec: T_co
    origin: str


def _as_overrides(value: object) -> FrozenMapping[object]:
    frozen = frozen_value(value)
    if not isinstance(frozen, FrozenMapping):
        expected = "a mapping from paths to what holds there"
        raise ConfigError(Problem(field="overrides", value=value, expected=expected))
    unhashable = [key for key, item in frozen.items() if not is_hashable(item)]
    refuse(*(_unhashable(key, frozen[key]) for key in unhashable))
    return frozen


def _unhashable(key: str, value: object) -> Problem:
    return Problem(field=f"overrides[{key!r}]", value=value, expected="made of immutable values only")


@attrs.frozen(kw_only=True)
class BaseConfig(ABC):
    """Base of every config: frozen, keyword-only, validated at construction.

    A config with one set of fields a module is a `ModuleConfig`, one with a spec a quantization point is a
    `SpecConfig`. Subclasses set `name`.

    >>> from tico_config import GPTQConfig
    >>> isinstance(GPTQConfig(), BaseConfig), GPTQConfig().name
    (True, 'gptq')
    """

    name: ClassVar[str]

    overrides: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=_as_overrides)

    def __attrs_post_init__(self) -> None:
        """Validate the fields, then the overrides against them."""
        refuse(*self._field_problems(), *pattern_problems(self.overrides))
        refuse(*(problem for key in self.overrides for problem in self._override_problems(key)))

    def _field_problems(self) -> list[Problem | None]:
        """Return what is wrong with the fields of the subclass."""
        return []

    @abstractmethod
    def _override_problems(self, key: str) -> tuple[Problem, ...]:
        """Return what is wrong with the value of one override."""

    @abstractmethod
    def resolve(self, path: str) -> Resolution[object]:
        """Return what holds at `path`, with the field or the override that decided.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """


def with_changes(whole: A, field: str, partial: object, fixed: frozenset[str] = frozenset()) -> A:
    """Return `whole` with the fields that `partial` maps to new values, except those in `fixed`.

    Raises:
        ConfigError: `partial` is no such mapping, or the changed value is not valid.
    """
    names = [attribute.name for attribute in attrs.fields(type(whole)) if attribute.name not in fixed]
    if not isinstance(partial, Mapping) or not partial:
        expected = f"a non-empty mapping with some of {', '.join(names)}"
        raise ConfigError(Problem(field=field, value=partial, expected=expected))
    refuse(*(_unknown_field(field, name, names) for name in partial if name not in names))
    try:
        changed: A = attrs.evolve(whole, **partial)  # type: ignore[misc]  # attrs wants a concrete class
        return changed
    except ConfigError as error:
        moved = [attrs.evolve(problem, field=f"{field}.{problem.field}") for problem in error.problems]
        raise ConfigError(*moved) from None


def partial_problems(
    whole: A, field: str, partial: object, fixed: frozenset[str] = frozenset()
) -> tuple[Problem, ...]:
    """Return what is wrong with `partial` as a change of some fields of `whole`.

    >>> from tico_config import GPTQConfig
    >>> [problem.field for problem in partial_problems(GPTQConfig(), "here", {"bits": 99})]
    ['here.bits']
    """
    try:
        with_changes(whole, field, partial, fixed)
    except ConfigError as error:
        return error.problems
    return ()


def _unknown_field(field: str, name: str, names: list[str]) -> Problem:
    near = difflib.get_close_matches(name, names, n=1)
    remedy = f"the nearest is {near[0]!r}" if near else None
    return Problem(
        field=field, value=Found(f"{name!r}"), expected=f"one of {', '.join(names)}", remedy=remedy
    )
