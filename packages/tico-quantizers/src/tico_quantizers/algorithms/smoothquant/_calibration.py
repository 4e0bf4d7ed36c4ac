"""What SmoothQuant learns from the data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import final

from torch import nn

from tico_config import SmoothQuantConfig
from tico_modules import Edit
from tico_quantizers.calibration import BlockInputs, BlockOptions
from tico_quantizers.equivalence import Candidates, InputMaxima, PairCalibration, alone
from tico_quantizers.protocol import Example


@final
class SmoothQuantCalibration(PairCalibration):
    """The largest magnitudes of the inputs of each pair's consumers; for a search, Gram matrices too."""

    def __init__(self, model: nn.Module, candidates: Candidates, config: SmoothQuantConfig) -> None:
        self.maxima = InputMaxima()
        super().__init__(candidates, config, self.maxima)
        options, layers = BlockOptions(fixed=True), candidates.layers
        self.inputs = BlockInputs(model, layers, options, self.reached) if _searches(config) else None

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> None:
        """Start to watch; every layer that could be a consumer is observed."""
        super().start(model, example, edit)
        found = ((path, self.candidates.consumer(path)) for path in self.candidates.layers)
        consumers = {path: layer for path, layer in found if layer is not None}
        self.handles += self.maxima.watch(
            tuple(alone(path, layer) for path, layer in consumers.items()), self
        )
        if self.inputs is not None:
            self.inputs.record(self)
            self.inputs.watch(consumers, self)


def _searches(config: SmoothQuantConfig) -> bool:
    rules = (rule for rule in config.overrides.values() if isinstance(rule, Mapping))
    return config.alpha == "auto" or any(rule.get("alpha") == "auto" for rule in rules)
