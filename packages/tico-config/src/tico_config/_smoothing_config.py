"""What the configs of algorithms that move scales between layers have in common: which layers form a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, cast

import attrs

from tico_config._errors import ConfigError
from tico_config._frozen_mapping import FrozenMapping
from tico_config._module_config import ModuleConfig
from tico_config._overrides import pattern_problems
from tico_config._problem import Problem
from tico_config.validation import freeze

_EXPECTED = "a mapping from a pattern to a non-empty list of patterns"


def _as_mappings(value: object) -> Mapping[str, tuple[str, ...]]:
    frozen = freeze(value)
    if not isinstance(frozen, FrozenMapping):
        raise ConfigError(Problem(field="mappings", value=value, expected=_EXPECTED))
    problems = [
        Problem(field=f"mappings[{key!r}]", value=patterns, expected=_EXPECTED)
        for key, patterns in frozen.items()
        if not _are_patterns(patterns)
    ]
    if problems:
        raise ConfigError(*problems)
    return cast("FrozenMapping[tuple[str, ...]]", frozen)


def _are_patterns(value: object) -> bool:
    return isinstance(value, tuple) and bool(value) and all(isinstance(item, str) for item in value)


@attrs.frozen(kw_only=True)
class SmoothingConfig(ModuleConfig):
    """A config of an algorithm that works on pairs.

    A pair is a module whose output channels can be scaled (a norm, a linear layer, a convolution) together
    with the layers that read it, which undo the scale. Pairs are found by running the model.

    Where that is not possible, `mappings` names them: a pattern for the modules that take the scales, with
    patterns for the layers that read them. A layer belongs to the nearest module that its pattern is listed
    with. Such pairs are tried on the example or the calibration data, and refused if they change the outputs
    of the model.

    In a class with `scales_only`, whose algorithm does nothing but scale pairs, an override that leaves out
    one layer of a pair leaves out the whole pair.

    >>> from tico_config import SmoothQuantConfig
    >>> SmoothQuantConfig(mappings={"*.norm": ["*.q_proj", "*.k_proj"]}).mappings["*.norm"]
    ('*.q_proj', '*.k_proj')
    """

    scales_only: ClassVar[bool] = False
    fixed_fields: ClassVar[frozenset[str]] = frozenset({"overrides", "mappings"})

    mappings: Mapping[str, tuple[str, ...]] = attrs.field(factory=FrozenMapping, converter=_as_mappings)

    def field_problems(self) -> Sequence[Problem | None]:
        """Return what is wrong with the patterns of `mappings`."""
        patterns = (pattern for values in self.mappings.values() for pattern in values)
        return pattern_problems([*self.mappings, *patterns], "mappings")
