"""How AWQ meets a model: scales for its pairs, then a range and integers for every layer."""

from __future__ import annotations

from typing import final

import attrs
import torch
from torch import Tensor, nn

from tico_config import AWQConfig
from tico_modules import Edit, LayerReport, PackedWeight, Report, named_modules
from tico_quantizers.algorithms.awq._plan import Plan, Target, plan_of
from tico_quantizers.calibration import BlockGrams, GroupedGram, require_watched
from tico_quantizers.conversion import Progress
from tico_quantizers.equivalence import (
    Candidates,
    FoundPairs,
    Pair,
    PairCalibration,
    Reader,
    candidates_of,
    exact_for,
    fold,
    known_pairs,
    put_matrix,
)
from tico_quantizers.layers import find_blocks, matrix, shape, with_weight
from tico_quantizers.protocol import BaseQuantizer, Converted, Example
from tico_quantizers.solvers import Consumer, best_scale, best_shares, magnitudes


@final
class AWQCalibration(PairCalibration):
    """The calls of every block, and the Gram matrices of what layers outside have read."""

    def __init__(self, model: nn.Module, candidates: Candidates, config: AWQConfig, plan: Plan) -> None:
        self.plan = plan
        blocks = find_blocks(model, [target.layer for target in plan.targets.values()])
        self.grams = BlockGrams(tuple(block for _, block in blocks))
        super().__init__(candidates, config, self.grams.calls)

    def begin(self, model: nn.Module, found: FoundPairs | None, edit: Edit) -> None:
        """Start to watch, unless `edit` is undone."""
        super().begin(model, found, edit)
        self.handles += self.grams.calls.watch(self)
        self.grams.watch({path: target.layer for path, target in self.plan.targets.items()}, self)

    def watch(self, found: FoundPairs) -> None:
        """Do nothing: the inputs of all layers are watched already."""

    def accept_unless_in_forward(self) -> None:
        """Count at once what a block or layer that was called by itself has shown."""
        if not self.grams.calls.is_running:
            super().accept_unless_in_forward()


@final
class AWQQuantizer(BaseQuantizer[AWQConfig, AWQCalibration]):
    """AWQ over every linear layer and convolution; all is found on the activations of the float model."""

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, AWQCalibration]:
        """Find the pairs, if example or mappings tell them, and start to watch."""
        candidates = candidates_of(model, self.config)
        plan = plan_of(model, candidates, self.config)
        found = known_pairs(model, candidates, self.config, example)
        calibration = AWQCalibration(model, candidates, self.config, plan)
        calibration.begin(model, found, edit)
        return model, calibration

    def convert(self, model: nn.Module, calibration: AWQCalibration, edit: Edit) -> Converted:
        """Scale, clip and round."""
        found, plan = calibration.pairs(), calibration.plan
        require_watched(calibration.reached.paths, tuple(plan.targets))
        bar = Progress("AWQ", total=len(plan.targets), show=self.config.show_progress)
        # Blocks run again here: neither the caller's gradients nor its random numbers may notice.
        safe = torch.inference_mode(mode=False), torch.no_grad(), torch.random.fork_rng(devices=[])
        with bar, safe[0], safe[1], safe[2]:
            search = _Search(plan, plan.worked_on(found.pairs))
            for grams in calibration.grams.by_block():
                search.learn(grams, bar)
            require_watched(set(search.shares), tuple(plan.targets))
            for pair in search.pairs:
                fold(model, pair, search.scales[pair.path][1], edit)
            return _converted(model, search, found, edit)


class _Search:
    """The scales of pairs and the ranges of groups, found as soon as what they depend on is known."""

    def __init__(self, plan: Plan, pairs: tuple[Pair, ...]) -> None:
        self.plan = plan
        self.pairs = pairs
        self.scales: dict[str, tuple[float, Tensor]] = {}
        self.shares: dict[str, Tensor] = {}
        self._pair_of = {reader.path: (pair, reader) for pair in pairs for reader in pair.readers}
        self._known: dict[str, GroupedGram] = {}

    def learn(self, grams: dict[str, GroupedGram], bar: Progress) -> None:
        """Go as far as `grams`, what some layers have read, allows."""
        self._known |= grams
        for pair in self.pairs:
            readers = [reader for reader in pair.readers if reader.path in self.plan.targets]
            if pair.path not in self.scales and all(reader.path in self._known for reader in readers):
                self.scales[pair.path] = self._scale(pair, readers)
        for path in [path for path in self._known if self._is_ready(path)]:
            self.shares[path] = self._share(self.plan.targets[path], self._known.pop(path))
            bar.step(path)

    def _is_ready(self, path: str) -> bool:
        return path not in self._pair_of or self._pair_of[path][0].path in self.scales

    def _scale(self, pair: Pair, readers: list[Reader]) -> tuple[float, Tensor]:
        consumers = [self._consumer(reader) for reader in readers]
        targets = [self.plan.targets[reader.path] for reader in readers]
        grids, steps = [target.grid for target in targets], max(target.config.n_grid for target in targets)
        share, scale = best_scale(consumers, grids, magnitudes(consumers, pair.channels), steps)
        return share, exact_for(pair, scale)

    def _consumer(self, reader: Reader) -> Consumer:
        gram = _mean(self._known[reader.path])
        return Consumer(weight=matrix(reader.layer), channels=reader.columns, gram=gram)

    def _share(self, target: Target, gram: GroupedGram) -> Tensor:
        """Return the shares of the ranges of a layer's groups, for its weight with scaled columns."""
        weight, mean = matrix(target.layer), _mean(gram)
        if target.path in self._pair_of:
            pair, reader = self._pair_of[target.path]
            columns = self.scales[pair.path][1][reader.columns]
            weight, mean = weight * columns, mean / columns / columns[:, None]
        if not target.config.clip:
            return torch.ones(1, 1, dtype=torch.float64, device=weight.device)
        return best_shares(weight, mean, target.grid)


def _mean(gram: GroupedGram) -> Tensor:
    return (gram.parts[0].matrix() / gram.rows).to(torch.float32)


def _converted(model: nn.Module, search: _Search, found: FoundPairs, edit: Edit) -> Converted:
    """Put the rounded layers into the model, and report what was done to each module."""
    root = model
    new: dict[str, nn.Module] = {pair.path: pair.module for pair in search.pairs}
    for path, target in search.plan.targets.items():
        weight, shares = matrix(target.layer), search.shares[path]
        new[path] = target.layer
        if target.config.round_weights:
            packed = PackedWeight.on_grid(
                weight.view(shape(target.layer)),
                target.grid.params(weight, shares),
                group_size=target.config.group_size,
            )
            new[path] = with_weight(target.layer, packed)
            root = edit.replace(root, target.layer, new[path])
        elif target.config.clip:
            put_matrix(path, target.layer, target.grid.clipped(weight, shares), edit)
    lines = _lines(search, found)
    ordered = tuple(
        attrs.evolve(lines[path], path=path, module=type(module).__name__)
        for path, module in named_modules(model)
        if path in lines
    )
    return Converted(root=root, modules=tuple(new.values()), report=Report(layers=ordered))


def _lines(search: _Search, found: FoundPairs) -> dict[str, LayerReport]:
    """Return what was done to each module, by path; the caller says what stands there."""
    notes: dict[str, list[str]] = {}
    figures: dict[str, list[tuple[str, float]]] = {}
    for pair in search.pairs:
        share, scale = search.scales[pair.path]
        readers = ", ".join(reader.path for reader in pair.readers)
        notes.setdefault(pair.path, []).append(f"channels divided for {readers}")
        spread = ("smallest scale", float(scale.min())), ("largest scale", float(scale.max()))
        figures[pair.path] = [("share of magnitude", share), *spread]
        for reader in pair.readers:
            notes.setdefault(reader.path, []).insert(0, f"columns multiplied for {pair.path}")
    for path, shares in search.shares.items():
        figures.setdefault(path, []).append(("mean share of range", float(shares.mean())))
    unread = {pair.path: "no layer that reads it is rounded" for pair in found.pairs}
    left = {**unread, **found.left, **search.plan.left}
    paths = [*notes, *figures, *(path for path in left if path not in search.plan.targets)]
    return {
        path: LayerReport(
            path=path,
            module="",
            algorithm="awq",
            weight=_format(search.plan.targets.get(path)),
            reason="; ".join(notes.get(path) or ([left[path]] if path in left else [])),
            figures=tuple(figures.get(path, ())),
        )
        for path in paths
    }


def _format(target: Target | None) -> str:
    if target is None or not target.config.round_weights:
        return "float"
    unit = "per row" if target.config.group_size is None else f"group {target.config.group_size}"
    return f"{target.grid.dtype} {'symmetric' if target.config.symmetric else 'asymmetric'} {unit}"
