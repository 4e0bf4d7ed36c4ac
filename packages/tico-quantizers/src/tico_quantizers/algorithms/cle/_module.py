"""How cross-layer equalization meets a model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar, Final, final

import torch
from torch import Tensor, nn

from tico_config import CLEConfig
from tico_modules import Edit
from tico_quantizers.conversion import close_experts, open_experts
from tico_quantizers.equivalence import (
    ChannelScale,
    FoundPairs,
    Pair,
    PairCalibration,
    candidates_of,
    exact_for,
    fold,
    lines_left,
    planned_pairs,
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
        root = close_experts(model, edit).root
        return planned_pairs(root, candidates, self.config, lines)

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
    scales: dict[str, Tensor] = {}
    for chain in _chains(found.pairs):
        ranges = {id(layer): _magnitudes(layer) for pair in chain for layer in _layers(pair)}
        pairs = []
        for pair in chain:
            first = ranges[id(_layers(pair)[0])]
            factors = pair.producer.factors() if isinstance(pair.producer, ChannelScale) else None
            if factors is not None:
                first.scale_outputs(factors.abs())
            pairs.append((first, [Reader(ranges[id(each.layer)], each.channels) for each in pair.consumers]))
        for pair, scale in zip(chain, equalizing_scales(pairs, sweeps), strict=True):
            scales[pair.path] = exact_for(pair, scale.to(torch.float32))
    return scales


def _chains(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Return the pairs in chains that share no layer, so that the ranges of one fit into memory."""
    chains: list[tuple[set[int], list[Pair]]] = []
    for pair in pairs:
        layers, chain = {id(layer) for layer in _layers(pair)}, [pair]
        for other in [other for other in chains if other[0] & layers]:
            chains.remove(other)
            layers, chain = layers | other[0], other[1] + chain
        chains.append((layers, chain))
    return [chain for _, chain in chains]


def _layers(pair: Pair) -> list[FloatLayer]:
    """Return the layer whose output channels a pair scales, perhaps behind a batch norm, and its readers."""
    first = pair.scaled if isinstance(pair.producer, ChannelScale) else pair.producer
    return [layer for layer in (first, *(each.layer for each in pair.consumers)) if layer is not None]


def _magnitudes(layer: FloatLayer) -> ChannelMagnitudes:
    largest = matrix(layer).abs().view(*shape(layer)[:2], -1).amax(2)
    return ChannelMagnitudes(largest, groups(layer))
