"""What the configs that give every quantization point a spec have in common."""

from __future__ import annotations

import attrs

from tico_config._base_config import BaseConfig, Resolution, partial_problems, with_changes
from tico_config._dtype import UINT8
from tico_config._errors import ConfigError, Problem
from tico_config._frozen_mapping import FrozenMapping
from tico_config._overrides import winning_rule
from tico_config._quant_spec import QuantSpec, affine
from tico_config._validation import instance

_PARTIAL = "a QuantSpec, or a mapping with some of its fields"


@attrs.frozen(kw_only=True)
class SpecConfig(BaseConfig):
    """A config with one spec for weights and one for activations, each changed by overrides.

    An override is a whole `QuantSpec`, which replaces the default, or a mapping with some of its fields.
    A module path as key holds for every point of that module; the path of a point for that point alone.

    >>> from tico_config import PTQConfig, no_quant
    >>> PTQConfig(overrides={"*.lm_head": no_quant()}).resolve("lm_head.weight").origin
    'weight'
    """

    activation: QuantSpec = attrs.field(factory=lambda: affine(UINT8))
    weight: QuantSpec = attrs.field(factory=lambda: affine(UINT8))

    def _field_problems(self) -> list[Problem | None]:
        return [
            instance("activation", self.activation, QuantSpec, "a QuantSpec"),
            instance("weight", self.weight, QuantSpec, "a QuantSpec"),
        ]

    def _override_problems(self, key: str) -> tuple[Problem, ...]:
        value, field = self.overrides[key], f"overrides[{key!r}]"
        if isinstance(value, QuantSpec):
            return ()
        if not isinstance(value, FrozenMapping):
            return (Problem(field=field, value=value, expected=_PARTIAL),)
        on_weight, on_activation = (
            partial_problems(spec, field, value) for spec in (self.weight, self.activation)
        )
        return on_weight if on_weight and on_activation else ()

    def resolve(self, path: str) -> Resolution[QuantSpec]:
        """Return the spec of the point at `path` and which field or override it comes from.

        A last component ``weight`` takes `weight` as its default, any other `activation`.

        Raises:
            ConfigError: two overrides contradict each other, or an override does not fit the default.

        >>> from tico_config import PTQConfig, DType, affine
        >>> config = PTQConfig(overrides={"*.down_proj.act_in": affine(DType.int(16))})
        >>> config.resolve("layers.0.down_proj.act_in").origin
        "overrides['*.down_proj.act_in']"
        >>> str(config.resolve("layers.0.down_proj.weight").spec)
        'uint8 asymmetric'
        """
        module, _, point = path.rpartition(".")
        role = "weight" if point == "weight" else "activation"
        default = self.weight if role == "weight" else self.activation
        rule = winning_rule(self.overrides, (path, module))
        if rule is None:
            return Resolution(default, role)
        change, origin = self.overrides[rule.pattern], f"overrides[{rule.pattern!r}]"
        if isinstance(change, QuantSpec):
            return Resolution(change, origin)
        try:
            return Resolution(with_changes(default, origin, change), origin)
        except ConfigError as error:
            raise ConfigError(*(attrs.evolve(problem, module=path) for problem in error.problems)) from None
