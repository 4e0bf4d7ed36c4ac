"""Which tensors the modules of a model hold: these were there before a forward pass."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, final

import torch
from torch import Tensor, nn

from tico_modules import PackedWeight, is_read_only

_PLAIN: Final = frozenset({int, float, bool, str, type(None), torch.dtype, torch.device, torch.Size})
_DEEPEST: Final = 4


@final
class HeldTensors:
    """The tensors in the modules of `root`, gone through when the first of them is asked for."""

    def __init__(self, root: nn.Module) -> None:
        self._root = root
        self._found: dict[int, Tensor] = {}
        self._codes: dict[int, Tensor] = {}

    def __contains__(self, tensor: object) -> bool:
        """Whether a module holds `tensor`, or computes it from the codes that it holds."""
        if not self._found:
            # Modules are told apart by identity: some have a hash of their own.
            self._found = {id(each): each for module in self._root.modules() for each in _tensors_of(module)}
        return self._found.get(id(tensor)) is tensor or (isinstance(tensor, Tensor) and is_read_only(tensor))

    def holds_codes(self, tensor: object) -> bool:
        """Whether `tensor` is the codes of an integer weight, whose rows a trace selects one by one."""
        if not self._codes:
            weights = (each for each in self._root.modules() if isinstance(each, PackedWeight))
            self._codes = {id(each.codes): each.codes for each in weights}
        return self._codes.get(id(tensor)) is tensor


def _tensors_of(module: nn.Module) -> Iterator[Tensor]:
    for value in vars(module).values():
        if type(value) not in _PLAIN:
            yield from held_in(value)


def held_in(value: object, depth: int = _DEEPEST) -> Iterator[Tensor]:
    """Yield the tensors in a value: those in lists, dicts, and attributes of objects that are no modules.

    >>> len(list(held_in({"a": [torch.zeros(1)], "b": nn.Linear(1, 1)})))
    1
    """
    if isinstance(value, Tensor):
        yield value
    elif depth and not isinstance(value, nn.Module | type):
        parts: object = value
        if isinstance(value, dict):
            parts = value.values()
        elif not isinstance(value, tuple | list):
            parts = getattr(value, "__dict__", {}).values()
        for each in parts:  # type: ignore[attr-defined]  # all three can be gone through
            if type(each) not in _PLAIN:
                yield from held_in(each, depth - 1)
