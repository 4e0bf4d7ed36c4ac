"""How AWQ meets a model: scales for its pairs, then a range and integers for every layer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import ClassVar, Final, TypeGuard, final

import attrs
import torch
from torch import Tensor, nn

from tico_config import AWQConfig, Problem
from tico_modules import Edit, LayerReport, PackedWeight, Progress, QuantizedExperts, named_modules
from tico_observers import Statistic, products
from tico_quantizers.calibration import (
    BlockInputs,
    BlockOptions,
    GroupedGram,
    SearchCheckpoint,
    TokenRule,
    checkpoint_folder,
    float_statistics,
    run_blocks,
)
from tico_quantizers.conversion import (
    NEVER_CALLED,
    SKIPPED,
    Conversion,
    gram_memory,
    open_experts,
    planned_layers,
)
from tico_quantizers.equivalence import (
    Candidates,
    Consumer,
    FoundPairs,
    Pair,
    PairCalibration,
    candidates_of,
    exact_for,
    fold,
    put_matrix,
    reason_against_scaling,
    scaled_memory,
    undecided_in,
)
from tico_quantizers.layers import (
    ExpertLinear,
    FloatLayer,
    Layer,
    LayerPlan,
    QuantizedWeight,
    Target,
    group_size_problem,
    matrix,
    outline,
    outline_line,
    plan_layers,
    require_in_place,
    shape,
)
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned
from tico_quantizers.solvers import ConsumerWeight, Grid, best_scale, best_shares, magnitudes

_NOT_ROUNDED: Final = "round_weights=False leaves it to the algorithm that follows"


@final
class AWQCalibration(PairCalibration):
    """The calls of every block, and the Gram matrices of what layers outside have read."""

    def __init__(
        self,
        model: nn.Module,
        candidates: Candidates,
        config: AWQConfig,
        plan: LayerPlan[AWQConfig],
        options: BlockOptions,
    ) -> None:
        super().__init__(candidates, config)
        self.plan = plan
        self.inputs = BlockInputs(model, plan.layers, options, self.reached)

    def start(self, model: nn.Module, example: Example | None, edit: Edit) -> None:
        """Start to watch."""
        super().start(model, example, edit)
        self.inputs.record(self)
        self.inputs.watch(self.plan.layers, self, self._rules())

    def _rules(self) -> dict[str, TokenRule]:
        """Return that experts in one parameter need no data."""
        experts = (path for path, layer in self.plan.layers.items() if isinstance(layer, ExpertLinear))
        return dict.fromkeys(experts, TokenRule(least=1))

    def statistics(self) -> Mapping[str, Statistic]:
        """Return what each layer of the plan has read."""
        return float_statistics(self.inputs)

    def adopt(self, statistics: Mapping[str, Statistic]) -> None:
        """Search with what the layers have read elsewhere, too."""
        self.require_shown_pairs()
        self.inputs.adopt(statistics)


@final
class AWQQuantizer(BaseQuantizer[AWQConfig, AWQCalibration]):
    """AWQ over every linear layer and convolution; all is found on the activations of the float model."""

    checks_target: ClassVar[bool] = True

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, AWQCalibration]:
        """Find the pairs, if example or mappings tell them, and start to watch."""
        model = open_experts(model, edit)
        candidates = candidates_of(model, self.config)
        plan = plan_layers(model, self.config, refuse=reason_against_scaling, check=_problems)
        skips = self.config.on_uncalibrated == "skip"
        options = BlockOptions(fixed=True, skip_unreached=skips).on(edit.offload)
        calibration = AWQCalibration(model, candidates, self.config, plan, options)
        calibration.start(model, example, edit)
        return model, calibration

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of `model`: which layers are rounded, not by which scales."""
        model = open_experts(model, edit)
        candidates = candidates_of(model, self.config)
        undecided = undecided_in(candidates, self.config)
        plan = plan_layers(model, self.config, refuse=reason_against_scaling, check=_problems)
        memory = gram_memory(model, plan.layers), scaled_memory(candidates)
        floats = {} if self.config.round_weights else dict.fromkeys(plan.targets, _NOT_ROUNDED)
        planned = planned_layers(model, plan.without(floats), outline, "awq", edit)
        converted = planned.converted
        if floats:
            scaled = tuple(module for path, module in named_modules(converted.root) if path in undecided)
            converted = attrs.evolve(converted, modules=scaled)
        notes = (NEVER_CALLED, SKIPPED) if self.config.on_uncalibrated == "skip" else (NEVER_CALLED,)
        return attrs.evolve(planned, converted=converted, undecided=undecided, notes=notes, memory=memory)

    def convert(self, model: nn.Module, calibration: AWQCalibration, edit: Edit) -> Converted:
        """Scale, clip and round."""
        found = calibration.pairs()
        require_in_place(model, {**calibration.plan.layers, **found.modules()})
        unreached = calibration.inputs.leave_unreached(edit)
        found, plan = found.without(unreached), calibration.plan.without(unreached)
        pairs = tuple(
            pair for pair in found.pairs if any(consumer.path in plan.targets for consumer in pair.consumers)
        )
        decisive = attrs.evolve(self.config, show_progress=True)
        folder = checkpoint_folder(decisive, model, calibration.inputs)
        shows = self.config.show_progress and calibration.ranks.number == 0
        # A step for the search at each layer, and one for its rounding.
        with Progress("AWQ", total=2 * len(plan.targets), show=shows) as bar:
            search = _Search(plan, pairs, edit, bar)
            run_blocks(calibration.inputs, search, SearchCheckpoint(folder, search))
            scaled = [(pair, search.scales[pair.path][1]) for pair in search.pairs]
            calibration.require_same_function(model, scaled, edit.offload)
            calibration.finish(model, edit)
            for pair, scale in scaled:
                fold(model, pair, scale, edit)
            work = Conversion(model, plan.layers, edit, bar)
            return _converted(work, search, found, edit)


class _Search:
    """The scales of pairs and the ranges of groups, found as soon as what they depend on is known."""

    def __init__(
        self, plan: LayerPlan[AWQConfig], pairs: tuple[Pair, ...], edit: Edit, bar: Progress
    ) -> None:
        self.plan = plan
        self._edit = edit
        self._bar = bar
        self.pairs = pairs
        self.scales: dict[str, tuple[float, Tensor]] = {}
        self.shares: dict[str, Tensor] = {}
        self.unread: set[str] = set()
        self._pair_of = {consumer.path: (pair, consumer) for pair in pairs for consumer in pair.consumers}
        self._known: dict[str, Tensor] = {}

    def learn(
        self, paths: tuple[str, ...], statistics: Mapping[str, GroupedGram | int]
    ) -> list[QuantizedWeight]:
        """Go as far as what some layers have read allows."""
        self._known |= {
            path: gram.means()[0] for path, gram in statistics.items() if isinstance(gram, GroupedGram)
        }
        unread = [path for path, read in statistics.items() if isinstance(read, int)]
        self.unread |= set(unread)
        self.shares |= {path: _whole_range(self.plan.targets[path]) for path in unread}
        for pair in self.pairs:
            rounded = [each for each in pair.consumers if each.path in self.plan.targets]
            consumers = [each for each in rounded if each.path not in self.unread]
            if pair.path not in self.scales and all(consumer.path in self._known for consumer in consumers):
                self.scales[pair.path] = self._scale(pair, consumers)
        for path in [path for path in self._known if self._is_ready(path)]:
            self.shares[path] = self._share(self.plan.targets[path], self._known.pop(path))
            self._edit.settle(self.shares[path])
            self._bar.step(f"{path} searched")
        return []

    def found(self) -> Mapping[str, Tensor]:
        """Return scales, with the share of the magnitudes that each follows from, shares, and what waits."""
        scales = {f"scale|{path}": scale for path, (_, scale) in self.scales.items()}
        powers = {f"power|{path}": _number(power) for path, (power, _) in self.scales.items()}
        shares = {f"share|{path}": share for path, share in self.shares.items()}
        unread = {f"unread|{path}": _number(0) for path in self.unread}
        return (
            scales | powers | shares | unread | {f"gram|{path}": each for path, each in self._known.items()}
        )

    def resume(self, found: Mapping[str, Tensor]) -> None:
        """Take over what `found` has returned."""
        kinds: dict[str, dict[str, Tensor]] = {}
        for name, tensor in found.items():
            kind, _, path = name.partition("|")
            kinds.setdefault(kind, {})[path] = tensor
        powers = kinds.get("power", {})
        self.scales |= {path: (float(powers[path]), each) for path, each in kinds.get("scale", {}).items()}
        self.shares |= kinds.get("share", {})
        for share in kinds.get("share", {}).values():
            self._edit.settle(share)
        self.unread |= kinds.get("unread", {}).keys()
        waiting = self._known | kinds.get("gram", {})
        self._known = {path: gram for path, gram in waiting.items() if path not in self.shares}

    def put_all(self, paths: tuple[str, ...], weights: list[QuantizedWeight]) -> None:
        """Do nothing: nothing is kept of a search."""

    def _is_ready(self, path: str) -> bool:
        return path not in self._pair_of or self._pair_of[path][0].path in self.scales

    def _scale(self, pair: Pair, consumers: list[Consumer]) -> tuple[float, Tensor]:
        weights = [self._weight(consumer) for consumer in consumers]
        configs = [self.plan.targets[consumer.path].config for consumer in consumers]
        grids, steps = [_grid(config) for config in configs], max(config.n_grid for config in configs)
        share, scale = best_scale(weights, grids, magnitudes(weights, pair.channels), steps)
        return share, exact_for(pair, scale)

    def _weight(self, consumer: Consumer) -> ConsumerWeight:
        weight, gram = matrix(consumer.layer), self._known[consumer.path]
        return ConsumerWeight(weight=weight, channels=consumer.columns, gram=gram)

    def _share(self, target: Target[AWQConfig], mean: Tensor) -> Tensor:
        """Return the shares of the ranges of a layer's groups, for its weight with scaled columns."""
        weight = matrix(target.layer)
        if target.path in self._pair_of:
            pair, consumer = self._pair_of[target.path]
            columns = self.scales[pair.path][1][consumer.columns]
            weight, mean = weight * columns, mean / columns / columns[:, None]
        if not target.config.clip:
            return _whole_range(target)
        return best_shares(weight, mean, _grid(target.config))


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64)


def _whole_range(target: Target[AWQConfig]) -> Tensor:
    """Return the share of its range that every group keeps: all of it."""
    return torch.ones(1, 1, dtype=torch.float64, device=matrix(target.layer).device)


def _grid(config: AWQConfig) -> Grid:
    dtype = config.number_format
    return Grid(dtype=dtype, symmetric=dtype.signed, group_size=config.shared_columns)


def _problems(target: Target[AWQConfig]) -> Iterator[Problem]:
    size, dtype = target.config.shared_columns, target.config.dtype
    ragged = target.config.ragged_groups or (dtype is not None and dtype.block_size is not None)
    problem = group_size_problem(target.path, target.layer, size, ragged=ragged)
    if problem is not None:
        yield problem


def _converted(work: Conversion, search: _Search, found: FoundPairs, edit: Edit) -> Converted:
    """Put the rounded layers into the model, and report what was done to each module."""
    kinds = {path: type(module).__name__ for path, module in named_modules(work.root)}
    lines = _lines(search, found, kinds, {})
    for path, target in search.plan.targets.items():
        weight, shares, grid = matrix(target.layer), search.shares[path], _grid(target.config)
        if target.config.round_weights:
            whole, params = weight.view(shape(target.layer)), grid.params(weight, shares)
            packed = PackedWeight.on_grid(whole, params, group_size=target.config.shared_columns)
            work.put(QuantizedWeight(packed, lines[path]))
        else:
            if target.config.clip and _is_own(target.layer):
                put_matrix(path, target.layer, grid.clipped(weight, shares), edit)
            work.keep(target.layer)
    for pair in search.pairs:
        if pair.path not in search.plan.targets:
            work.keep(pair.module)
    left = search.plan.lines_left(work.close_experts(), "awq")
    experts = (path for path, each in named_modules(work.root) if isinstance(each, QuantizedExperts))
    kinds |= dict.fromkeys(experts, QuantizedExperts.__name__)
    return work.converted(_lines(search, found, kinds, left))


def _is_own(layer: Layer) -> TypeGuard[FloatLayer]:
    """Tell whether `layer` holds a float weight of its own, not one of those in a parameter."""
    return isinstance(layer, FloatLayer) and not isinstance(layer, ExpertLinear)


def _lines(
    search: _Search, found: FoundPairs, kinds: Mapping[str, str], left: Mapping[str, LayerReport]
) -> dict[str, LayerReport]:
    """Return what was done to each module, by path; `kinds` says what stands there, `left` what is float."""
    notes: dict[str, list[str]] = {}
    figures: dict[str, list[tuple[str, float]]] = {}
    for pair in search.pairs:
        share, scale = search.scales[pair.path]
        notes.setdefault(pair.path, []).append(f"channels divided for {', '.join(pair.readers)}")
        spread = ("smallest scale", float(scale.min())), ("largest scale", float(scale.max()))
        figures[pair.path] = [("share of magnitude", share), *spread]
        experts = {consumer.path: f"columns multiplied for {pair.path}" for consumer in pair.consumers}
        for path, note in {**experts, **pair.reader_notes()}.items():
            notes.setdefault(path, []).insert(0, note)
    for path, shares in search.shares.items():
        figures.setdefault(path, []).append(
            ("mean share of range", float(products.total(shares)) / shares.numel())
        )
    for path, why in search.plan.left.items():
        if path in notes:
            notes[path].append(why)
    for path in search.unread:
        notes.setdefault(path, []).append("no token went to it, so its whole range was kept")
    told = {path: line.reason for path, line in left.items()}
    unread = {pair.path: "no layer that reads it is rounded" for pair in found.pairs}
    told |= {**unread, **found.left, **search.plan.left}
    paths = dict.fromkeys([*notes, *figures, *(path for path in told if path not in search.plan.targets)])
    return {
        path: attrs.evolve(
            _plain_line(path, kinds[path], search.plan.targets.get(path)),
            reason="; ".join(notes.get(path) or ([told[path]] if path in told else [])),
            figures=(*(left[path].figures if path in left else ()), *figures.get(path, ())),
        )
        for path in paths
        if path in kinds
    }


def _plain_line(path: str, kind: str, target: Target[AWQConfig] | None) -> LayerReport:
    if target is None or not target.config.round_weights:
        return LayerReport(path=path, module=kind, algorithm="awq")
    return attrs.evolve(outline_line(target), module=kind)
