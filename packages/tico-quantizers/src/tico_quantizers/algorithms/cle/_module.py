"""How cross-layer equalization meets a model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from tico_config import CLEConfig
from tico_modules import Edit
from tico_quantizers.conversion import close_experts, open_experts, planned_pairs
from tico_quantizers.equivalence import (
    ChannelScale,
    FoundPairs,
    Pair,
    PairCalibration,
    candidates_of,
    exact_for,
    fold,
    lines_left,
    scaled_pairs,
)
from tico_quantizers.layers import FloatLayer, groups, matrix, require_in_place, shape
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned
from tico_quantizers.solvers import ChannelMagnitudes, Reader, equalizing_scales

_DOES: Final = "scales linear layers and convolutions"


@final
class CLEQuantizer(BaseQuantizer[CLEConfig, PairCalibration]):
    """Equalization over every pair: what it leaves is a float model of the same function."""

    checks_target: ClassVar[bool] = True

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, PairCalibration]:
        """Find the pairs, if example or mappings tell them, and start to watch."""
        model = open_experts(model, edit)
        calibration = PairCalibration(candidates_of(model, self.config, of_weights=True), self.config)
        calibration.start(model, example, edit)
        return model, calibration

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`: nothing of which the data do not decide."""
        model = open_experts(model, edit)
        candidates = candidates_of(model, self.config, of_weights=True)
        lines = lines_left(model, "cle", candidates.reasons, does=_DOES)
        return planned_pairs(model, candidates, self.config, lines, edit)

    def convert(self, model: nn.Module, calibration: PairCalibration, edit: Edit) -> Converted:
        """Fold a scale into the modules of each pair."""
        found = calibration.pairs()
        require_in_place(model, found.modules())
        scales = _scales(found, self.config.sweeps)
        scaled = [(pair, scales[pair.path]) for pair in found.pairs]
        calibration.require_same_function(model, scaled, edit.offload)
        calibration.finish(model, edit)
        left, root = lines_left(model, "cle", found.left, does=_DOES), model
        for pair, scale in scaled:
            root = fold(root, pair, scale, edit)
        return scaled_pairs(close_experts(root, edit).root, "cle", found, scales, left)


def _scales(found: FoundPairs, sweeps: int) -> dict[str, Tensor]:
    """Return the scale of each pair, float32; all follow from the weights before any is folded."""
    ranges: dict[int, ChannelMagnitudes] = {}
    for layer in _layers(found):
        largest = matrix(layer).view(*shape(layer)[:2], -1).abs().amax(2)
        ranges[id(layer)] = ChannelMagnitudes(largest, groups(layer))
    pairs = []
    for pair in found.pairs:
        first = ranges[id(_first_layer(pair))]
        factors = pair.producer.factors() if isinstance(pair.producer, ChannelScale) else None
        if factors is not None:
            first.scale_outputs(factors.abs())
        pairs.append((first, [Reader(ranges[id(each.layer)], each.channels) for each in pair.consumers]))
    scales = zip(found.pairs, equalizing_scales(pairs, sweeps), strict=True)
    return {pair.path: exact_for(pair, scale.to(torch.float32)) for pair, scale in scales}


def _first_layer(pair: Pair) -> FloatLayer | None:
    """Return the layer whose output channels a pair scales, perhaps behind a batch norm."""
    return pair.scaled if isinstance(pair.producer, ChannelScale) else pair.producer


def _layers(found: FoundPairs) -> Iterator[FloatLayer]:
    for pair in found.pairs:
        first = _first_layer(pair)
        yield from (each.layer for each in pair.consumers)
        if first is not None:
            yield first
