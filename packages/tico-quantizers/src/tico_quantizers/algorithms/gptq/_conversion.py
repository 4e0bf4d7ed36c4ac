"""Layers replaced by integer ones, one after the other."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from torch import nn

from tico_modules import Edit, LayerReport
from tico_quantizers.algorithms.gptq._layer import QuantizedWeight, ReadInput, rounded, solved
from tico_quantizers.algorithms.gptq._plan import Target
from tico_quantizers.calibration import GroupedGram
from tico_quantizers.conversion import Progress
from tico_quantizers.layers import with_weight

_LOG = logging.getLogger(__name__)


class Conversion:
    """The layers replaced so far."""

    def __init__(self, model: nn.Module, edit: Edit, progress: Progress) -> None:
        self.root = model
        self.done: list[LayerReport] = []
        self.modules: list[nn.Module] = []
        self._edit = edit
        self._progress = progress

    def quantize(
        self, targets: tuple[Target, ...], grams: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Quantize `targets` by what they have read; where that is but a number of tokens, to nearest."""
        weights = []
        read: ReadInput | None = None
        for target in targets:
            gram = grams[target.path]
            if isinstance(gram, int):
                weights.append(rounded(target, gram))
            else:
                # Most layers that read the same are neighbours.
                if read is None or read.gram is not gram:
                    read = None
                    read = ReadInput(gram)
                weights.append(solved(target, read))
            self.put(target, weights[-1])
        return weights

    def put_all(self, targets: Sequence[Target], weights: Sequence[QuantizedWeight]) -> None:
        """Put the `weights` that an earlier conversion has left of `targets` into the model."""
        by_path = {target.path: target for target in targets}
        for weight in weights:
            self.put(by_path[weight.line.path], weight)

    def put(self, target: Target, weight: QuantizedWeight) -> None:
        """Put an integer layer with the given weight into the model."""
        new = with_weight(target.layer, weight.packed)
        self.root = self._edit.replace(self.root, target.layer, new)
        self.modules.append(new)
        self.done.append(weight.line)
        self._tell(weight.line)

    def _tell(self, line: LayerReport) -> None:
        figures = dict(line.figures)
        loss = figures.get("loss")
        told = "" if loss is None else f"loss {loss:.4g}, "
        self._progress.step(f"{line.path}: {told}{line.seconds:.2f} s")
        _LOG.info("%s: %s%.2f s", line.path, told, line.seconds)
        if line.reason:
            _LOG.warning("%s: %s", line.path, line.reason)
