"""Inputs and outputs of a program, flat, as runtimes have them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from tico_export.protocol import Example


def fed(names: Sequence[str], example: Example) -> Mapping[str, Tensor]:
    """Return a tensor for each of the inputs `names` of a runtime: keywords by name, others in order."""
    given = {name: each for name, each in example.kwargs.items() if name in names}
    rest = {name: each for name, each in example.kwargs.items() if name not in names}
    leaves = iter(_tensors((example.args, rest)))
    return {name: found if isinstance(found := given.get(name), Tensor) else next(leaves) for name in names}


def _tensors(values: object) -> list[Tensor]:
    leaves: list[object] = pytree.tree_leaves(values)
    return [torch.as_tensor(each) for each in leaves if isinstance(each, Tensor | bool | int | float)]


@runtime_checkable
class _Array(Protocol):
    """A tensor or an array of numpy."""

    def __array__(self) -> object:
        """Return the values."""


def floats_of(outputs: object) -> list[Tensor]:
    """Return the tensors of floats among `outputs`, which may be arrays of numpy, and hold other objects."""
    leaves: list[object] = pytree.tree_leaves(outputs)
    found = [torch.as_tensor(each) for each in leaves if isinstance(each, _Array)]
    return [each for each in found if each.is_floating_point()]
