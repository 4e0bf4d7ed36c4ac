"""Example inputs of a model."""

from __future__ import annotations

from collections.abc import Mapping

import attrs


@attrs.frozen(eq=False, kw_only=True)
class Example:
    """What a model is called with, and which of its axes vary, as `torch.export.export` takes them."""

    args: tuple[object, ...] = ()
    kwargs: Mapping[str, object] = attrs.field(factory=dict)
    dynamic_shapes: object = None
