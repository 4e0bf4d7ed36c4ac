"""What every algorithm's config has in common: a name, checked fields, overrides, and how they resolve."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import ClassVar, TypeVar

import attrs

from tico_config._declared_types import field_problems
from tico_config._deployment_profile import DeploymentProfile
from tico_config._errors import ConfigError
from tico_config._frozen_mapping import FrozenMapping, freeze, is_hashable
from tico_config._named_fields import NamedFields
from tico_config._overrides import Resolution, pattern_problems, winning_rule
from tico_config._partial import apply_partial, partial_problems
from tico_config._problem import Problem
from tico_config.validation import refuse


def _as_overrides(value: object) -> FrozenMapping[object]:
    frozen = freeze(value)
    if not isinstance(frozen, FrozenMapping):
        expected = "a mapping from paths to what holds there"
        raise ConfigError(Problem(field="overrides", value=value, expected=expected))
    unhashable = [key for key, item in frozen.items() if not is_hashable(item)]
    refuse(*(_unhashable(key, frozen[key]) for key in unhashable))
    return frozen


def _unhashable(key: str, value: object) -> Problem:
    return Problem(field=f"overrides[{key!r}]", value=value, expected="made of immutable values only")


@attrs.frozen(kw_only=True)
class BaseConfig(NamedFields):
    """Base of every config: frozen, keyword-only, validated at construction.

    A config of your own sets `name` and its fields, and needs no more. Their declared types are checked; what
    else a field requires is said by `field_problems`. An override changes some fields for the paths it
    matches; for anything else, replace `override_problems` and `resolve`, as `SpecConfig` does. Derive from
    `ModuleConfig` to have `resolve` typed as giving your class. Register it with `register_config`.

    Attributes:
        name: short name of the algorithm, for reports.
        fixed_fields: fields that no override may change.
        overrides: paths, globs or ``re:`` patterns, each with what holds there.
        target: what is to run the result, such as `profiles.VLLM`: `prepare` refuses what that cannot take.

    Raises:
        ConfigError: one or more fields are wrong; all are reported.

    >>> @attrs.frozen(kw_only=True)
    ... class RoundingConfig(BaseConfig):
    ...     name: ClassVar[str] = "rounding"
    ...     bits: int = 4
    >>> RoundingConfig(overrides={"*.head": {"bits": 8}}).resolve("lm.head").spec.bits
    8
    """

    name: ClassVar[str]
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides"})

    overrides: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=_as_overrides)
    target: DeploymentProfile | None = None

    def __attrs_post_init__(self) -> None:
        """Validate the fields, then the overrides against them."""
        refuse(*field_problems(self, self.field_problems), *pattern_problems(self.overrides))
        refuse(*(problem for key in self.overrides for problem in self.override_problems(key)))

    def field_problems(self) -> Sequence[Problem | None]:
        """Return what is wrong with the fields beyond their types; None is no problem.

        A subclass that adds fields adds its own checks to those of ``super().field_problems()``.
        """
        return ()

    def override_problems(self, key: str) -> Sequence[Problem | None]:
        """Return what is wrong with the value of the override `key`; None is no problem.

        An override is a mapping with new values for some fields, none of them in `fixed_fields`.
        """
        defaults = attrs.evolve(self, overrides={})
        fixed = self.fixed_fields | {"target"}
        return partial_problems(defaults, f"overrides[{key!r}]", self.overrides[key], fixed)

    @classmethod
    def choices_for(cls, target: DeploymentProfile) -> Iterable[Mapping[str, object]]:
        """Yield fields of configs that are legal for `target`, the best first; by default none is known.

        >>> from tico_config import GPTQConfig, profiles
        >>> next(iter(GPTQConfig.choices_for(profiles.LLAMA_CPP)))
        {'bits': 4, 'symmetric': True, 'group_size': 128, 'per_tensor': False}
        """
        return ()

    def resolve(self, path: str) -> Resolution[object]:
        """Return what holds at `path`, with the field or the override that decided: here a config.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """
        return resolve_fields(self, path)


C = TypeVar("C", bound=BaseConfig)


def resolve_fields(config: C, path: str) -> Resolution[C]:
    """Return `config` without its overrides, changed by the one that holds at `path`, and what decided."""
    defaults = attrs.evolve(config, overrides={})
    rule = winning_rule(config.overrides, (path,))
    if rule is None:
        return Resolution(defaults, "defaults")
    origin = f"overrides[{rule.pattern!r}]"
    return Resolution(apply_partial(defaults, origin, config.overrides[rule.pattern]), origin)
