"""What the configs whose fields can be set module by module have in common."""

from __future__ import annotations

from typing import ClassVar

import attrs
from typing_extensions import Self

from tico_config._base_config import BaseConfig, Resolution, partial_problems, with_changes
from tico_config._errors import Problem
from tico_config._overrides import winning_rule


@attrs.frozen(kw_only=True)
class ModuleConfig(BaseConfig):
    """A config that holds for a whole module; an override changes some of its fields.

    Subclasses list in `fixed_fields` what an override may not change.

    >>> from tico_config import GPTQConfig
    >>> GPTQConfig(overrides={"*.down_proj": {"bits": 8}}).resolve("mlp.down_proj").origin
    "overrides['*.down_proj']"
    """

    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides"})

    def _override_problems(self, key: str) -> tuple[Problem, ...]:
        defaults = attrs.evolve(self, overrides={})
        return partial_problems(defaults, f"overrides[{key!r}]", self.overrides[key], self.fixed_fields)

    def resolve(self, path: str) -> Resolution[Self]:
        """Return the config that holds for the module at `path`, with the rule that decided.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """
        rule = winning_rule(self.overrides, (path,))
        if rule is None:
            return Resolution(attrs.evolve(self, overrides={}), "defaults")
        origin = f"overrides[{rule.pattern!r}]"
        changed = with_changes(attrs.evolve(self, overrides={}), origin, self.overrides[rule.pattern])
        return Resolution(changed, origin)
