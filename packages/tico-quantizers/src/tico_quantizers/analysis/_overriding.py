"""A config in which some layers are otherwise."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import attrs

from tico_config import GPTQConfig, apply_partial, winning_rule

Change: TypeAlias = Mapping[str, object]
"""Fields of a layer's config, with new values."""


def with_choices(base: GPTQConfig, choices: Mapping[str, Change]) -> GPTQConfig:
    """Return `base` with an override for each layer that is to be otherwise than it says.

    What an override of `base` says of a layer holds for it still, but for the fields that are chosen. A model
    that is a layer itself, with an empty path, has no name for an override, and so gets other fields.

    >>> found = with_choices(GPTQConfig(overrides={"*.down": {"damping": 0.1}}), {"a.down": {"bits": 8}})
    >>> dict(found.overrides["a.down"])
    {'bits': 8, 'damping': 0.1}
    """
    if "" in choices:
        return apply_partial(base, "candidates", choices[""])
    overrides: dict[str, object] = dict(base.overrides)
    for path, change in choices.items():
        now = base.resolve(path).spec
        if any(getattr(now, name) != value for name, value in change.items()):
            overrides[path] = {**_said(base, path), **change}
    return attrs.evolve(base, overrides=overrides)


def _said(base: GPTQConfig, path: str) -> Change:
    rule = winning_rule(base.overrides, (path,))
    said = None if rule is None else base.overrides[rule.pattern]
    return said if isinstance(said, Mapping) else {}
