"""Example inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from tico_config import ConfigError, Found, Problem


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """What a model is called with, and which of its axes vary, as `torch.export.export` takes them."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = attrs.field(factory=dict)
    dynamic_shapes: object = None


def given(example: Example | None) -> Example:
    """Return `example`, which a target that needs one is always given.

    Raises:
        ConfigError: it is None.
    """
    if example is None:
        raise ConfigError(Problem(field="args", value=Found("none"), expected="example inputs"))
    return example
