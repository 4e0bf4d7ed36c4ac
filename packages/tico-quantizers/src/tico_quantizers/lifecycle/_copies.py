"""Copies of models."""

from __future__ import annotations

import copy

from torch import nn

from tico_config import Found, Problem, UnsupportedError


def detached_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model`.

    Raises:
        UnsupportedError: a part of it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deepcopy" not in str(error):
            raise
        found = Found(f"one that cannot be copied ({error})")
        expected, remedy = "a model that copy.deepcopy takes", "pass inplace=True"
        raise UnsupportedError(
            Problem(
                field="model",
                value=found,
                expected=expected,
                remedy=remedy,
                sentence=f"the model cannot be copied ({error})",
            )
        ) from error
