"""What the configs whose fields can be set module by module have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs
from typing_extensions import Self

from tico_config._base_config import BaseConfig, resolve_fields
from tico_config._grid_format import GridFormat
from tico_config._overrides import Resolution, winning_rule
from tico_config._problem import Problem
from tico_config._quant_spec import QuantSpec, is_left_out

OnUncalibrated: TypeAlias = Literal["error", "skip"]
"""What becomes of layers that no calibration data reach."""


@attrs.frozen(kw_only=True)
class ModuleConfig(BaseConfig):
    """A config that holds for a whole module; an override changes some of its fields.

    Subclasses list in `fixed_fields` what an override may not change. The override `no_quant()` leaves a
    module out, and everything below it that no other override matches.

    >>> from tico_config import GPTQConfig, no_quant
    >>> config = GPTQConfig(overrides={"*.down_proj": {"bits": 8}, "tower": no_quant()})
    >>> config.resolve("mlp.down_proj").origin
    "overrides['*.down_proj']"
    >>> config.reason_to_leave("tower.fc")
    "left out by the override 'tower'"
    """

    def override_problems(self, key: str) -> Sequence[Problem | None]:
        """Return what is wrong with the value of the override `key`; None is no problem.

        It is `no_quant()`, or a mapping with new values for some fields, none of them in `fixed_fields`.
        """
        change, name = self.overrides[key], type(self).__name__
        names = {field.name for field in attrs.fields(type(self))}
        can_change = bool(names - self.fixed_fields - {"target"})
        if can_change and not isinstance(change, QuantSpec):
            return super().override_problems(key)
        if isinstance(change, QuantSpec) and is_left_out(change):
            return ()
        mapping = f", or a mapping with some fields of {name}"
        expected = f"no_quant(){mapping if can_change else f', as {name} holds for the whole model'}"
        return [Problem(field=f"overrides[{key!r}]", value=change, expected=expected)]

    def resolve(self, path: str) -> Resolution[Self]:
        """Return the config that holds for the module at `path`, with the rule that decided.

        For a module that is left out, see `reason_to_leave`, these are the fields without a change.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """
        rule = winning_rule(self.overrides, (path,))
        if rule is None or not is_left_out(self.overrides[rule.pattern]):
            return resolve_fields(self, path)
        return Resolution(attrs.evolve(self, overrides={}), f"overrides[{rule.pattern!r}]")

    def weight_format(self) -> GridFormat | None:
        """Return the format that the weights of a layer get; None where this class does not say.

        A config that does not say cannot have a `target`, where its algorithm quantizes weights.

        >>> from tico_config import GPTQConfig
        >>> str(GPTQConfig(group_size=32, symmetric=True).weight_format())
        'int4 symmetric, groups of 32'
        """
        return None

    def reason_to_leave(self, path: str) -> str | None:
        """Return why the module at `path` is left out, or None where it is not.

        Raises:
            ConfigError: two equally specific overrides contradict each other.
        """
        rule = winning_rule(self.overrides, (path,))
        if rule is None or not is_left_out(self.overrides[rule.pattern]):
            return None
        return f"left out by the override {rule.pattern!r}"
