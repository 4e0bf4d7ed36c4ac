"""What SmoothQuant learns from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import nn

from tico_config import SmoothQuantConfig
from tico_quantizers.calibration import BlockInputs, BlockOptions
from tico_quantizers.equivalence import Candidates, FoundPairs, InputMaxima, PairCalibration


@final
class SmoothQuantCalibration(PairCalibration):
    """The largest magnitudes of the inputs of each pair's consumers; for a search, Gram matrices too."""

    def __init__(self, model: nn.Module, candidates: Candidates, config: SmoothQuantConfig) -> None:
        self.maxima = InputMaxima()
        super().__init__(candidates, config, self.maxima)
        options, layers = BlockOptions(fixed=True), candidates.layers
        self.inputs = BlockInputs(model, layers, options, self.reached) if _searches(config) else None

    def start(self, model: nn.Module, found: FoundPairs | None) -> None:
        """Start to watch."""
        if self.inputs is not None:
            self.inputs.record(self)
        super().start(model, found)

    def watch(self, found: FoundPairs) -> None:
        """Observe the inputs of the consumers."""
        self.handles += self.maxima.watch(found.pairs, self)
        if self.inputs is not None:
            consumers = (consumer for pair in found.pairs for consumer in pair.consumers)
            self.inputs.watch({consumer.path: consumer.layer for consumer in consumers}, self)


def _searches(config: SmoothQuantConfig) -> bool:
    rules = (rule for rule in config.overrides.values() if isinstance(rule, Mapping))
    return config.alpha == "auto" or any(rule.get("alpha") == "auto" for rule in rules)
