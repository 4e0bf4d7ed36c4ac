"""How SmoothQuant meets a model."""

from __future__ import annotations

from typing import final

import torch
from torch import Tensor, nn

from tico_config import ConfigError, Found, Problem, SmoothQuantConfig
from tico_modules import Edit, LayerReport, Report, named_modules
from tico_quantizers.algorithms.smoothquant._calibration import SmoothQuantCalibration
from tico_quantizers.calibration import GroupedGram, require_watched
from tico_quantizers.equivalence import FoundPairs, Pair, Reader, candidates_of, exact_for, fold, known_pairs
from tico_quantizers.layers import matrix, shape
from tico_quantizers.protocol import BaseQuantizer, Converted, Example
from tico_quantizers.solvers import Consumer, best_alpha, smoothing_scale


@final
class SmoothQuantQuantizer(BaseQuantizer[SmoothQuantConfig, SmoothQuantCalibration]):
    """SmoothQuant over every pair: what it leaves is a float model of the same function."""

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, SmoothQuantCalibration]:
        """Find the pairs, if example or mappings tell them, and start to watch."""
        candidates = candidates_of(model, self.config)
        found = known_pairs(model, candidates, self.config, example)
        for pair in () if found is None else found.pairs:
            config_of(self.config, pair)
        calibration = SmoothQuantCalibration(model, candidates, self.config)
        calibration.begin(model, found, edit)
        return model, calibration

    def convert(self, model: nn.Module, calibration: SmoothQuantCalibration, edit: Edit) -> Converted:
        """Fold a scale into the modules of each pair."""
        found = calibration.pairs()
        readers = tuple(reader.path for pair in found.pairs for reader in pair.readers)
        require_watched(calibration.reached.paths, readers)
        # Blocks may run again here: neither the caller's gradients nor its random numbers may notice.
        with torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[]):
            scales = self._scales(calibration, found)
            root = model
            for pair in found.pairs:
                root = fold(root, pair, scales[pair.path][1], edit)
        return _converted(root, found, scales)

    def _scales(
        self, calibration: SmoothQuantCalibration, found: FoundPairs
    ) -> dict[str, tuple[float, Tensor]]:
        """Return alpha and scale of each pair; all follow from the weights before any is folded."""
        scales: dict[str, tuple[float, Tensor]] = {}
        searched: list[Pair] = []
        for pair in found.pairs:
            alpha = config_of(self.config, pair).alpha
            if alpha == "auto":
                searched.append(pair)
            else:
                low, high = calibration.maxima.range_of(pair)
                activation = torch.maximum(high, -low)
                scales[pair.path] = alpha, smoothing_scale(activation, weight_maximum(pair), alpha)
        if searched:
            scales |= _searched_scales(calibration, searched)
        return {
            pair.path: (scales[pair.path][0], exact_for(pair, scales[pair.path][1])) for pair in found.pairs
        }


def _searched_scales(
    calibration: SmoothQuantCalibration, pairs: list[Pair]
) -> dict[str, tuple[float, Tensor]]:
    """Search alpha for each pair as soon as what its readers have read is known."""
    scales: dict[str, tuple[float, Tensor]] = {}
    known: dict[str, GroupedGram] = {}
    grams = calibration.grams
    for found in grams.by_block() if grams is not None else ():
        known |= found
        for pair in pairs:
            paths = [reader.path for reader in pair.readers]
            if pair.path not in scales and all(path in known for path in paths):
                consumers = [_consumer(reader, known[reader.path]) for reader in pair.readers]
                low, high = calibration.maxima.range_of(pair)
                scales[pair.path] = best_alpha(consumers, low, high, weight_maximum(pair))
                known = {path: gram for path, gram in known.items() if path not in paths}
    readers = [reader.path for pair in pairs if pair.path not in scales for reader in pair.readers]
    require_watched(set(known), tuple(readers))
    return scales


def _consumer(reader: Reader, gram: GroupedGram) -> Consumer:
    return Consumer(
        weight=matrix(reader.layer),
        channels=reader.columns,
        gram=(gram.parts[0].matrix() / gram.rows).to(torch.float32),
    )


def config_of(config: SmoothQuantConfig, pair: Pair) -> SmoothQuantConfig:
    """Return what holds for a pair, by the rules for its source and its readers.

    Raises:
        ConfigError: two rules contradict each other.
    """
    found = [config.resolve(path) for path in (pair.path, *(reader.path for reader in pair.readers))]
    first, *others = [each for each in found if each.origin != "defaults"] or found
    for other in others:
        if other.spec != first.spec:
            value = Found(f"{first.origin} and {other.origin}, which say different things")
            expected = "one rule for a pair, which has one scale"
            raise ConfigError(Problem(module=pair.path, field="overrides", value=value, expected=expected))
    return first.spec


def weight_maximum(pair: Pair) -> Tensor:
    """Return the largest magnitude of each channel in the weights of the pair's readers, (channels,)."""
    largest = torch.zeros(pair.channels, dtype=torch.float64, device=pair.readers[0].channels.device)
    for reader in pair.readers:
        weight = matrix(reader.layer).view(shape(reader.layer))
        features = weight.abs().transpose(0, 1).flatten(1).amax(1)
        largest.scatter_reduce_(0, reader.channels, features.to(torch.float64), "amax")
    return largest


def _note(pair: Pair) -> str:
    if pair.source is None:
        return "columns multiplied, and the input by the inverse"
    return f"channels divided for {', '.join(reader.path for reader in pair.readers)}"


def _converted(model: nn.Module, found: FoundPairs, scales: dict[str, tuple[float, Tensor]]) -> Converted:
    """Report what was done to each module."""
    notes: dict[str, list[str]] = {}
    figures: dict[str, tuple[tuple[str, float], ...]] = {}
    for pair in found.pairs:
        alpha, scale = scales[pair.path]
        notes.setdefault(pair.path, []).append(_note(pair))
        spread = ("smallest scale", float(scale.min())), ("largest scale", float(scale.max()))
        figures[pair.path] = (("alpha", alpha), *spread)
        for reader in pair.readers if pair.source is not None else ():
            notes.setdefault(reader.path, []).insert(0, f"columns multiplied for {pair.path}")
    lines = tuple(
        LayerReport(
            path=path,
            module=type(module).__name__,
            algorithm="smoothquant",
            reason="; ".join(notes.get(path) or [found.left[path]]),
            figures=figures.get(path, ()),
        )
        for path, module in named_modules(model)
        if path in notes or path in found.left
    )
    changed = tuple(module for path, module in named_modules(model) if path in notes)
    return Converted(root=model, modules=changed, report=Report(layers=lines))
