"""How far a model is on its way from prepare to convert, as far as it can be seen without an algorithm."""

from __future__ import annotations

from typing import Final

from torch import nn

PREPARED: Final = "_tico_prepared"
"""The attribute under which a prepared model keeps what `prepare` has left with it."""


def is_prepared(module: nn.Module) -> bool:
    """Tell whether `prepare` was called with this very module, and `convert` not yet.

    >>> is_prepared(nn.Identity())
    False
    """
    return PREPARED in vars(module)
