"""Calls of blocks that end as soon as nothing more is to be learned from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import attrs
from torch import nn
from torch.utils.hooks import RemovableHandle

from tico_quantizers.calibration._block_calls import NothingMore
from tico_quantizers.calibration._forward_watch import Calibration
from tico_quantizers.layers import Layer


class CalledOnce:
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
            handles.append(block.register_forward_pre_hook(_Begin(self, number, calibration)))
            for path, layer in self._layers[number].items():
                handles.append(layer.register_forward_pre_hook(_Note(self, number, path)))
            handles.append(block.register_forward_hook(_End(self, number, calibration)))
        return handles

    def begin(self, number: int) -> None:
        """Start to count for a call of block `number`."""
        self._called[number] = []

    def note(self, number: int, path: str) -> None:
        """Count a call of one of its layers."""
        self._called[number].append(path)

    def end(self, number: int) -> None:
        """Compare the calls of its layers with the layers."""
        if sorted(self._called[number]) == sorted(self._layers[number]):
            self._whole[number] += 1
        else:
            self._other[number] += 1

    def holds(self, number: int) -> bool:
        """Return whether it is so for block `number`."""
        return self._whole[number] > 0 and not self._other[number]


@attrs.frozen(eq=False)
class _Begin:
    counts: CalledOnce
    number: int
    calibration: Calibration

    def __call__(self, block: nn.Module, args: object) -> None:
        if self.calibration.watching:
            self.counts.begin(self.number)


@attrs.frozen(eq=False)
class _Note:
    counts: CalledOnce
    number: int
    path: str

    def __call__(self, layer: nn.Module, args: object) -> None:
        self.counts.note(self.number, self.path)


@attrs.frozen(eq=False)
class _End:
    counts: CalledOnce
    number: int
    calibration: Calibration

    def __call__(self, block: nn.Module, args: object, output: object) -> None:
        if self.calibration.watching:
            self.counts.end(self.number)


@attrs.define(eq=False)
class LastLayer:
    """Ends each call of a block at the last of the `layers`, of which it calls each once."""

    layers: Mapping[str, Layer]
    waiting: set[str] = attrs.field(factory=set)

    def watch(self, block: nn.Module) -> list[RemovableHandle]:
        """Set the hooks, behind those of whoever learns from the layers."""
        handles: list[RemovableHandle] = [block.register_forward_pre_hook(self._begin)]
        for path, layer in self.layers.items():
            handles.append(layer.register_forward_pre_hook(_Reached(self, path)))
        return handles

    def _begin(self, block: nn.Module, args: object) -> None:
        self.waiting = set(self.layers)


@attrs.frozen(eq=False)
class _Reached:
    last: LastLayer
    path: str

    def __call__(self, layer: nn.Module, args: object) -> None:
        self.last.waiting.discard(self.path)
        if not self.last.waiting:
            raise NothingMore
