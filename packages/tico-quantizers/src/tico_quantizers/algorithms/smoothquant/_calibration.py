"""What SmoothQuant learns from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import nn

from tico_config import SmoothQuantConfig
from tico_modules import Edit
from tico_quantizers.calibration import BlockGrams
from tico_quantizers.equivalence import Candidates, FoundPairs, InputMaxima, PairCalibration
from tico_quantizers.layers import find_blocks


@final
class SmoothQuantCalibration(PairCalibration):
    """The largest magnitudes of what the readers of each pair are given; for a search, Gram matrices too."""

    def __init__(self, model: nn.Module, candidates: Candidates, config: SmoothQuantConfig) -> None:
        self.maxima = InputMaxima()
        self.grams: BlockGrams | None = None
        super().__init__(candidates, config, self.maxima)
        if _searches(config):
            blocks = find_blocks(model, candidates.layers.values())
            self.grams = BlockGrams(tuple(block for _, block in blocks))
            self.recorders = (*self.recorders, self.grams.calls)

    def begin(self, model: nn.Module, found: FoundPairs | None, edit: Edit) -> None:
        """Start to watch, unless `edit` is undone."""
        if self.grams is not None:
            self.handles += self.grams.calls.watch(self)
        super().begin(model, found, edit)

    def accept_unless_in_forward(self) -> None:
        """Count at once what a block or layer that was called by itself has shown."""
        if self.grams is None or not self.grams.calls.is_running:
            super().accept_unless_in_forward()

    def watch(self, found: FoundPairs) -> None:
        """Observe the inputs of the readers."""
        self.handles += self.maxima.watch(found.pairs, self)
        if self.grams is not None:
            readers = (reader for pair in found.pairs for reader in pair.readers)
            self.grams.watch({reader.path: reader.layer for reader in readers}, self)


def _searches(config: SmoothQuantConfig) -> bool:
    rules = (rule for rule in config.overrides.values() if isinstance(rule, Mapping))
    return config.alpha == "auto" or any(rule.get("alpha") == "auto" for rule in rules)
