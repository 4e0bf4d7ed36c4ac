"""What the configs that give every quantization point a spec have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import attrs

from tico_config._base_config import BaseConfig
from tico_config._dtype import UINT8
from tico_config._errors import ConfigError
from tico_config._frozen_mapping import FrozenMapping, is_hashable
from tico_config._overrides import Resolution, winning_rule
from tico_config._partial import apply_partial, partial_problems
from tico_config._problem import Problem
from tico_config._quant_spec import QuantSpec, affine
from tico_config.validation import check_instance, refuse

Role: TypeAlias = Literal["weight", "activation"]
"""Which default a point has."""

_CHANGE = "a QuantSpec, or a mapping with some of its fields"


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

    def override_problems(self, key: str) -> Sequence[Problem | None]:
        """Return what is wrong with the value of the override `key` for weights and for activations."""
        return self.change_problems(f"overrides[{key!r}]", self.overrides[key])

    def change_problems(self, field: str, change: object) -> tuple[Problem, ...]:
        """Return what is wrong with `change` as the spec of a point; `field` names its place in an error.

        A change is a `QuantSpec`, or a `FrozenMapping` with some of its fields; `freeze` makes one of a dict.

        >>> from tico_config import PTQConfig
        >>> change = FrozenMapping.of({"dtype": 8})
        >>> [problem.field for problem in PTQConfig().change_problems("here", change)]
        ['here.dtype']
        """
        if isinstance(change, QuantSpec):
            return ()
        if not isinstance(change, FrozenMapping) or not is_hashable(change):
            return (Problem(field=field, value=change, expected=_CHANGE),)
        on_weight, on_activation = (
            partial_problems(spec, field, change) for spec in (self.weight, self.activation)
        )
        return on_weight if on_weight and on_activation else ()

    def apply_change(self, role: str, origin: str, change: object, path: str) -> Resolution[QuantSpec]:
        """Return what `change` makes of the default spec of `role`, ``"weight"`` or ``"activation"``.

        `origin` names the change in the result and in an error, `path` the point in an error.

        Raises:
            ConfigError: the change does not fit the default.

        >>> from tico_config import PTQConfig, UINT4
        >>> change = FrozenMapping.of({"dtype": UINT4})
        >>> str(PTQConfig().apply_change("weight", "here", change, "fc.weight").spec)
        'uint4 asymmetric'
        """
        if isinstance(change, QuantSpec):
            return Resolution(change, origin)
        default = self.weight if role == "weight" else self.activation
        try:
            return Resolution(apply_partial(default, origin, change), origin)
        except ConfigError as error:
            raise ConfigError(*(attrs.evolve(problem, module=path) for problem in error.problems)) from None

    def resolve(self, path: str, role: Role | None = None) -> Resolution[QuantSpec]:
        """Return the spec of the point at `path` and which field or override it comes from.

        The default is the field that `role` names; without it, a last component ``weight`` takes `weight`,
        any other `activation`.

        Raises:
            ConfigError: two overrides contradict each other, or an override does not fit the default.

        >>> from tico_config import PTQConfig, DType, affine
        >>> config = PTQConfig(overrides={"*.down_proj.act_in": affine(DType.int(16))})
        >>> config.resolve("layers.0.down_proj.act_in").origin
        "overrides['*.down_proj.act_in']"
        >>> str(config.resolve("layers.0.down_proj.weight").spec)
        'uint8 asymmetric'
        """
        refuse(check_instance("path", path, str, "a path, as text"))
        module, _, point = path.rpartition(".")
        if role is None:
            role = "weight" if point == "weight" else "activation"
        rule = winning_rule(self.overrides, (path, module))
        if rule is None:
            return Resolution(self.weight if role == "weight" else self.activation, role)
        return self.apply_change(role, f"overrides[{rule.pattern!r}]", self.overrides[rule.pattern], path)
