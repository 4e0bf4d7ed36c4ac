"""Gram matrices of the inputs of layers: one for each distinct input tensor."""

from __future__ import annotations

from collections.abc import Mapping

import attrs
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from tico_observers import GramStatistic
from tico_quantizers._forward_watch import Calibration, Recorder
from tico_quantizers._quantized_linear import QuantizedLinear
from tico_quantizers._weight_view import Layer, columns, input_rows, input_tensor


@attrs.define(eq=False)
class _Input:
    """An input of the pass that goes on, and the layers that have read it."""

    original: Tensor
    layer: Layer
    kept: Tensor
    readers: list[str]


class InputGrams(Recorder):
    """Gram matrices of what the layers read, shared by layers that read the same tensors.

    They are kept by the set of layers that read an input. Layers that always read the same tensor (query,
    key and value projections) thus share one matrix, whatever the model looks like.
    """

    def __init__(self, layers: Mapping[str, Layer]) -> None:
        self._layers = layers
        self._grams: dict[frozenset[str], GramStatistic] = {}
        self._inputs: list[_Input] = []

    def watch(self, calibration: Calibration) -> list[RemovableHandle]:
        """Set a hook on every layer that keeps its inputs while `calibration` watches."""
        handles: list[RemovableHandle] = []
        for path, layer in self._layers.items():
            hook = _Read(self, path, layer, calibration)
            handles.append(layer.register_forward_pre_hook(hook, with_kwargs=True))
        return handles

    def note(self, path: str, layer: Layer, x: Tensor) -> None:
        """Keep the input `x` of the layer at `path` until the pass ends."""
        for known in self._inputs:
            if known.original is x and path not in known.readers and _same_rows(known.layer, layer):
                known.readers.append(path)
                return
        # A copy: the model may write to the tensor before the pass ends.
        self._inputs.append(_Input(x, layer, x.detach().clone(), [path]))

    def drop_unfinished(self) -> None:
        """Forget the inputs of a pass that did not end."""
        self._inputs = []

    def accept(self) -> None:
        """Add the inputs of the pass that has ended."""
        for item in self._inputs:
            readers = frozenset(item.readers)
            rows = input_rows(item.layer, item.kept)
            gram = self._grams.get(readers) or GramStatistic(columns=columns(item.layer))
            self._grams[readers] = gram.observe_in_place(rows)
        self._inputs = []

    def gram(self, path: str) -> GramStatistic | None:
        """Return the statistic of everything that the layer at `path` has read; None if that is nothing."""
        total: GramStatistic | None = None
        for readers in sorted(self._grams, key=sorted):
            if path in readers:
                gram = self._grams[readers]
                total = gram if total is None else total.merge(gram)
        return total


def _same_rows(one: Layer, other: Layer) -> bool:
    """Whether both make the same rows of the same input: linear layers without a grid of their own do."""
    return all(
        isinstance(layer, nn.Linear) or (isinstance(layer, QuantizedLinear) and layer.act_in is None)
        for layer in (one, other)
    )


class _Read:
    def __init__(self, grams: InputGrams, path: str, layer: Layer, calibration: Calibration) -> None:
        self._grams, self._path, self._layer, self._calibration = grams, path, layer, calibration

    def __call__(self, module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
        if self._calibration.watching:
            self._grams.note(self._path, self._layer, input_tensor(self._path, args, kwargs))
            self._calibration.accept_unless_in_forward()
