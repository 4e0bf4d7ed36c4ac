"""Calls of blocks that end as soon as nothing more is to be learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import attrs
from torch import nn
from torch.utils.hooks import RemovableHandle

from tico_modules import Edit
from tico_quantizers.calibration._block_calls import NothingMore
from tico_quantizers.calibration._forward_watch import Calibration, Recorder
from tico_quantizers.calibration._hooks import after_call, before_call
from tico_quantizers.layers import Layer


class CalledOnce(Recorder):
    """Which blocks have called each of their layers once in every call of the user's own passes.

    What it has seen is not taken back if a pass fails, which can only make it more careful.
    """

    def __init__(self, layers: Sequence[Mapping[str, Layer]]) -> None:
        self._layers = layers
        self._called: list[list[str]] = [[] for _ in layers]
        self._whole = [0 for _ in layers]
        self._other = [0 for _ in layers]

    def watch(self, blocks: Sequence[nn.Module], calibration: Calibration) -> list[RemovableHandle]:
        """Set the hooks that count the calls of layers while `calibration` watches."""
        handles: list[RemovableHandle] = []
        for number, block in enumerate(blocks):
            handles.append(before_call(block, partial(self._begin, number), calibration))
            for path, layer in self._layers[number].items():
                handles.append(before_call(layer, partial(self._note, number, path)))
            handles.append(after_call(block, partial(self._end, number), calibration))
        return handles

    def _begin(self, number: int, args: object, kwargs: object) -> None:
        self._called[number] = []

    def _note(self, number: int, path: str, args: object, kwargs: object) -> None:
        self._called[number].append(path)

    def _end(self, number: int, args: object, kwargs: object, output: object) -> None:
        if sorted(self._called[number]) == sorted(self._layers[number]):
            self._whole[number] += 1
        else:
            self._other[number] += 1

    def drop_unfinished(self) -> None:
        """Keep what was seen."""

    def accept(self) -> None:
        """Keep what was seen."""

    def tell(self) -> tuple[list[int], list[int]]:
        """Return how many calls of each block were so, and how many were not."""
        return self._whole, self._other

    def hear(self, told: Sequence[object], edit: Edit) -> None:
        """Count the calls of all ranks."""
        both = [each for each in told if isinstance(each, tuple)]
        for name, counts in zip(("_whole", "_other"), zip(*both, strict=True), strict=True):
            edit.set_attribute(self, name, list(map(sum, zip(*counts, strict=True))))

    def holds(self, number: int) -> bool:
        """Return whether it is so for block `number`."""
        return self._whole[number] > 0 and not self._other[number]


@attrs.define(eq=False)
class LastLayer:
    """Ends each call of a block at the last of the `layers`, of which it calls each once."""

    layers: Mapping[str, Layer]
    waiting: set[str] = attrs.field(factory=set)

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        """Set the hooks, behind those of whoever learns from the layers."""
        handles = [before_call(block, self._begin)]
        for path, layer in self.layers.items():
            handles.append(before_call(layer, partial(self._reach, path)))
        return handles

    def _begin(self, args: object, kwargs: object) -> None:
        self.waiting = set(self.layers)

    def _reach(self, path: str, args: object, kwargs: object) -> None:
        self.waiting.discard(path)
        if not self.waiting:
            raise NothingMore
