"""How SmoothQuant meets a model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import attrs
import torch
from torch import Tensor, nn

from tico_config import SmoothQuantConfig
from tico_modules import Edit, Progress
from tico_quantizers.algorithms.smoothquant._calibration import (
    SmoothQuantCalibration,
    config_of,
    searches,
)
from tico_quantizers.calibration import (
    UNREACHED,
    BlockOptions,
    GroupedGram,
    SearchCheckpoint,
    checkpoint_folder,
    require_watched,
    run_blocks,
)
from tico_quantizers.conversion import SKIPPED, close_experts, gram_memory, open_experts
from tico_quantizers.equivalence import (
    Consumer,
    FoundPairs,
    Pair,
    candidates_of,
    exact_for,
    fold,
    lines_left,
    planned_pairs,
    scaled_pairs,
)
from tico_quantizers.layers import QuantizedWeight, matrix, require_in_place, shape
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned
from tico_quantizers.solvers import ConsumerWeight, best_alpha, smoothing_scale


@final
class SmoothQuantQuantizer(BaseQuantizer[SmoothQuantConfig, SmoothQuantCalibration]):
    """SmoothQuant over every pair: what it leaves is a float model of the same function."""

    checks_target: ClassVar[bool] = True

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, SmoothQuantCalibration]:
        """Find the pairs, if example or mappings tell them, and start to watch."""
        model = open_experts(model, edit)
        candidates = candidates_of(model, self.config)
        options = BlockOptions(fixed=True).on(edit.offload)
        calibration = SmoothQuantCalibration(model, candidates, self.config, options)
        calibration.start(model, example, edit)
        if example is not None:
            for pair in calibration.shown_pairs().pairs:
                config_of(self.config, pair)
        return model, calibration

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`: nothing of which the data do not decide."""
        model = open_experts(model, edit)
        candidates = candidates_of(model, self.config)
        layers = {path: each for path in candidates.layers if (each := candidates.consumer(path)) is not None}
        grams = (gram_memory(model, layers),) if searches(self.config) else ()
        lines = lines_left(model, "smoothquant", candidates.reasons)
        root = close_experts(model, edit).root
        planned = planned_pairs(root, candidates, self.config, lines)
        return attrs.evolve(
            planned,
            unsized=frozenset(layers) if self.config.insert_mul else frozenset(),
            notes=(SKIPPED,) if self.config.on_uncalibrated == "skip" else (),
            memory=(*grams, *planned.memory),
        )

    def convert(self, model: nn.Module, calibration: SmoothQuantCalibration, edit: Edit) -> Converted:
        """Fold a scale into the modules of each pair."""
        found = calibration.pairs()
        require_in_place(model, found.modules())
        reached = calibration.reached_paths
        expected = tuple(each.path for each in found.consumers if each.path not in found.adopted)
        if self.config.on_uncalibrated == "error":
            require_watched(reached, expected)
        found = found.without({path: UNREACHED for path in expected if path not in reached})
        scales = self._scales(model, calibration, found)
        scaled = [(pair, scales[pair.path][1]) for pair in found.pairs]
        calibration.require_same_function(model, scaled, edit.offload)
        calibration.finish(model, edit)
        left = lines_left(model, "smoothquant", found.left)
        root = model
        for pair, scale in scaled:
            root = fold(root, pair, scale, edit)
        root, folded = close_experts(root, edit).root, {path: scale for path, (_, scale) in scales.items()}
        figures = {path: (("alpha", alpha),) for path, (alpha, _) in scales.items()}
        return scaled_pairs(root, "smoothquant", found, folded, left, figures)

    def _scales(
        self, model: nn.Module, calibration: SmoothQuantCalibration, found: FoundPairs
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
        if searched and calibration.inputs is not None:
            known = {each.path for pair in searched for each in pair.consumers} - found.adopted
            inputs = calibration.inputs.only(known)
            folder = checkpoint_folder(self.config, model, inputs)
            is_first = calibration.ranks.number == 0
            with Progress("SMOOTHQUANT", total=len(searched), show=is_first, unit="pair") as bar:
                search = _Search(calibration, searched, found.adopted, bar)
                run_blocks(inputs, search, SearchCheckpoint(folder, search))
            scales |= search.scales
        return {
            pair.path: (scales[pair.path][0], exact_for(pair, scales[pair.path][1])) for pair in found.pairs
        }


class _Search:
    """Alpha and scale of pairs, searched as soon as what their consumers have read is known."""

    def __init__(
        self,
        calibration: SmoothQuantCalibration,
        pairs: list[Pair],
        adopted: frozenset[str],
        bar: Progress,
    ) -> None:
        self._bar = bar
        self.scales: dict[str, tuple[float, Tensor]] = {}
        self._adopted = adopted
        self._maxima = calibration.maxima
        self._waiting = pairs
        self._known: dict[str, Tensor] = {}

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Go as far as what some layers have read allows."""
        self._known |= {
            path: gram.means()[0] for path, gram in statistics.items() if isinstance(gram, GroupedGram)
        }
        ready = [pair for pair in self._waiting if all(each.path in self._known for each in self._read(pair))]
        self._waiting = [pair for pair in self._waiting if pair not in ready]
        for pair in ready:
            consumers = [_consumer(each, self._known.pop(each.path)) for each in self._read(pair)]
            low, high = self._maxima.range_of(pair)
            self.scales[pair.path] = best_alpha(consumers, low, high, weight_maximum(pair))
            self._bar.step(pair.path)
        return []

    def found(self) -> Mapping[str, Tensor]:
        """Return scales, with alpha of each, and what waits for more."""
        scales = {f"scale|{path}": scale for path, (_, scale) in self.scales.items()}
        alphas = {
            f"alpha|{path}": torch.tensor(alpha, dtype=torch.float64)
            for path, (alpha, _) in self.scales.items()
        }
        return scales | alphas | {f"gram|{path}": gram for path, gram in self._known.items()}

    def resume(self, found: Mapping[str, Tensor]) -> None:
        """Take over what `found` has returned."""
        self._known |= {
            name.removeprefix("gram|"): gram for name, gram in found.items() if name.startswith("gram|")
        }
        for pair in [pair for pair in self._waiting if f"scale|{pair.path}" in found]:
            self.scales[pair.path] = float(found[f"alpha|{pair.path}"]), found[f"scale|{pair.path}"]
            self._waiting.remove(pair)
            for each in self._read(pair):
                self._known.pop(each.path, None)

    def _read(self, pair: Pair) -> list[Consumer]:
        """Return the consumers of which it is known what they have read."""
        return [each for each in pair.consumers if each.path not in self._adopted]

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Do nothing: nothing is kept of a search."""


def _consumer(consumer: Consumer, gram: Tensor) -> ConsumerWeight:
    return ConsumerWeight(weight=matrix(consumer.layer), channels=consumer.columns, gram=gram)


def weight_maximum(pair: Pair) -> Tensor:
    """Return the largest magnitude of each channel in the weights of the pair's consumers, (channels,)."""
    largest = torch.zeros(pair.channels, dtype=torch.float64, device=pair.consumers[0].channels.device)
    for consumer in pair.consumers:
        weight = matrix(consumer.layer).view(shape(consumer.layer))
        features = weight.abs().transpose(0, 1).flatten(1).amax(1)
        largest.scatter_reduce_(0, consumer.channels, features.to(torch.float64), "amax")
    return largest
