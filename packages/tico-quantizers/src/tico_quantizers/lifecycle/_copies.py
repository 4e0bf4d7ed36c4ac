"""Copies of models."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from types import MappingProxyType

from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError


def detached_copy(model: nn.Module, known: Mapping[int, Tensor] = MappingProxyType({})) -> nn.Module:
    """Return a deep copy of `model`, with the tensors of `known` in the place of those of these identities.

    Raises:
        UnsupportedError: a part of it cannot be copied.
    """
    try:
        return copy.deepcopy(model, dict(known))
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
