"""Layers whose weight is computed from what they keep, so that no other one can take its place."""

from __future__ import annotations

from typing import NoReturn

from torch import nn

from tico_config import Found, LifecycleError, Problem
from tico_modules._storage.read_only_weight import ReadOnlyWeight


class KeepsWeight(nn.Module):
    """A layer whose `weight` is a read-only property."""

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """Take in a parameter; refuse one in the place of the weight, and the weight under another name.

        The latter is what pruning asks for: it keeps the weight as ``weight_orig``.

        Raises:
            LifecycleError: it is to be the weight, or is the weight.
        """
        if name == "weight" or isinstance(param, ReadOnlyWeight):
            refuse_weight()
        super().register_parameter(name, param)


def refuse_weight() -> NoReturn:
    """Refuse another weight, or none, in the place of the one that an integer layer has.

    Raises:
        LifecycleError: always.
    """
    remedy = "replace the whole layer, or change the weight before the model is converted"
    sentence, expected = "an integer layer keeps its codes and takes no other weight", "the codes that it has"
    raise LifecycleError(
        Problem(
            field="weight", value=Found("another one"), expected=expected, remedy=remedy, sentence=sentence
        )
    )
