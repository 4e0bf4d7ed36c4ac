"""How PT2E meets a model: exported, annotated, watched, and turned into a graph of integers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar, final

import attrs
from torch import fx, nn

from tico_config import (
    ConfigError,
    Found,
    PerChannel,
    PerTensor,
    Problem,
    PT2EConfig,
    QuantSpec,
    UnsupportedError,
)
from tico_modules import Edit, LayerReport, Report, named_modules
from tico_observers import AffineParams, Observer, observer_for, quantize
from tico_pt2e._annotation import (
    AT_THE_OUTPUT,
    TO_DECIDE,
    Annotated,
    Grid,
    Placement,
    placements,
    require_known,
    require_possible,
    weight_axis,
)
from tico_pt2e._channel_axes import channel_axes
from tico_pt2e._concatenations import output_concats, parts_of
from tico_pt2e._data_flow import deciding_nodes
from tico_pt2e._export import export
from tico_pt2e._folding import (
    fold_batch_norms,
    fold_constant_weights,
    plain_batch_norms,
    without_copies,
)
from tico_pt2e._graph import QuantGraph, WeightSite, become, draft_of, quant_graph
from tico_pt2e._integers import give_readers_their_own, moved_to_grid
from tico_pt2e._mask_flow import masked_scores
from tico_pt2e._nodes import argument, describe_as
from tico_pt2e._operations import find_operations
from tico_pt2e._targets import require_taken
from tico_pt2e._watching import Follower, GraphCalibration, Watch, require_data
from tico_pt2e._weights import (
    SiteView,
    constant_before,
    fitted,
    put_weight,
    require_finite_weights,
    view_of,
)
from tico_pt2e._written_norms import whole_norms
from tico_quantizers.calibration import require_evaluation_mode
from tico_quantizers.layers import float_lines
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned

_WATCHES = "watches"


@final
class PT2EQuantizer(BaseQuantizer[PT2EConfig, GraphCalibration]):
    """Rounds the values and weights of an exported graph to nearest, on grids that calibration finds."""

    works_in_place: ClassVar[bool] = False
    checks_target: ClassVar[bool] = True
    graphs: ClassVar[tuple[type[fx.GraphModule], ...]] = (fx.GraphModule,)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Refuse: there is no graph before the model is run.

        Raises:
            UnsupportedError: always.
        """
        raise UnsupportedError(
            Problem(
                field="quant_config",
                value=Found("PT2EConfig"),
                expected="the config of an algorithm that works on modules",
                sentence="PT2E quantizes the operators of the graph that torch.export makes of a model and"
                " example inputs, which a plan goes without",
                remedy="call prepare(model, config, args, inplace=False), which refuses what does not fit",
            )
        )

    def prepare(
        self, model: nn.Module, example: Example | None, edit: Edit
    ) -> tuple[nn.Module, GraphCalibration]:
        """Export the model and put watches where its graph is to have grids."""
        if isinstance(model, QuantGraph):
            found, remedy = Found("a graph of PT2E's"), "prepare the model that it was made from"
            expected = "a model that was not exported yet"
            sentence = "the model is a graph that PT2E has made already"
            raise UnsupportedError(
                Problem(field="model", value=found, expected=expected, remedy=remedy, sentence=sentence)
            )
        require_evaluation_mode(model)
        exported = export(model, example, self.config)
        graph = quant_graph(exported, exported.graph, (), ())
        _simplify(graph)
        annotated, left = self._annotated(graph)
        weights = _weights(annotated, self.config)
        require_finite_weights([view_of(graph, site) for site in weights])
        lines = _lines(annotated, left)
        paths = tuple(line.path for line in lines if line.path)
        watches = _insert_watches(graph, placements(graph.graph, annotated))
        prepared = quant_graph(graph, graph.graph, tuple(weights), paths)
        return prepared, GraphCalibration(watches, weights, (*lines, *_lines_left(model, paths)))

    def _annotated(self, graph: QuantGraph) -> tuple[list[Annotated], Counter[str]]:
        found = find_operations(graph.graph)
        if not any(not operation.shares for operation in found.operations):
            names = ", ".join(sorted(found.left)) or "nothing"
            value = Found(f"a graph of {names}")
            expected = "a model with an operator that can be quantized"
            sentence = f"no operator of the graph can be quantized; it has {names}"
            raise ConfigError(Problem(field="model", value=value, expected=expected, sentence=sentence))
        require_known(self.config, found.operations)
        annotated = [Annotated.of(operation, self.config) for operation in found.operations]
        if not self.config.quantize_output_concat:
            last = output_concats(graph.graph)
            annotated = [item.at_the_output() if item.operation.node in last else item for item in annotated]
        deciding = deciding_nodes(graph.graph)
        annotated = [item.to_decide() if item.operation.last in deciding else item for item in annotated]
        require_possible(annotated)
        require_taken(annotated, self.config)
        return annotated, found.left

    def convert(self, model: nn.Module, calibration: GraphCalibration, edit: Edit) -> Converted:
        """Put quantize and dequantize nodes in the place of the watches, and integers in that of weights."""
        require_data(calibration.watches)
        if not isinstance(model, QuantGraph):
            raise UnsupportedError(Problem(field="model", value=model, expected="what prepare returned"))
        draft = draft_of(model)
        labels = _quantize_values(draft)
        notes = _quantize_weights(draft, calibration.weights)
        give_readers_their_own(draft.graph)
        draft.graph.lint()
        become(model, draft, edit)
        spoiled = {watch.path: watch.figures for watch in calibration.watches if watch.figures}
        lines = tuple(_finished(line, labels, notes, spoiled) for line in calibration.lines)
        return Converted(root=model, modules=(model,), report=Report(layers=lines))


def _simplify(graph: QuantGraph) -> None:
    without_copies(graph.graph)
    whole_norms(graph.graph)
    plain_batch_norms(graph.graph)
    fold_constant_weights(graph)
    fold_batch_norms(graph)
    graph.graph.eliminate_dead_code()


def _weights(annotated: Sequence[Annotated], config: PT2EConfig) -> dict[WeightSite, QuantSpec]:
    """Return the sites of the graph with their specs, those that stay in float too."""
    found: dict[WeightSite, QuantSpec] = {}
    for item in annotated:
        operation, pattern = item.operation, item.operation.pattern
        if item.weight is None:
            continue
        groups = argument(operation.node, pattern.groups) if pattern.groups is not None else 1
        site = WeightSite(
            path=operation.path,
            operator=pattern.operator,
            node=operation.node.name,
            weight=operation.weight_position,
            bias=pattern.bias,
            axis=weight_axis(operation),
            groups=groups if isinstance(groups, int) else 1,
            float_bias=not config.bias.is_quantized,
        )
        found[site] = item.weight.spec
    return found


def _insert_watches(graph: QuantGraph, places: list[Placement]) -> list[Watch]:
    """Let every value that is to have a grid pass through a watch, or through what follows one."""
    order = {node: index for index, node in enumerate(graph.graph.nodes)}
    names: dict[Grid, str] = {}
    found: list[Watch] = []
    masked, axes = masked_scores(graph.graph), channel_axes(graph.graph)
    graph.add_module(_WATCHES, nn.Module())
    for number, place in enumerate(places):
        name = f"{_WATCHES}.value_{number}"
        if place.leads:
            axis, scores = axes.get(place.source, -1), place.source in masked
            watch = Watch(place.grid.path, place.grid.spec, axis=axis, scores=scores)
            found.append(watch)
            names[place.grid] = name
        module = watch if place.leads else Follower(names[place.grid])
        graph.add_submodule(name, module)
        with graph.graph.inserting_before(min(place.readers, key=order.__getitem__)):
            seen = graph.graph.call_module(
                name, (place.source, *(parts_of(place.source) if place.leads else ()))
            )
        describe_as(seen, place.source)
        for reader in place.readers:
            reader.replace_input_with(place.source, seen)
    return found


def _quantize_values(draft: QuantGraph) -> dict[str, str]:
    """Replace watches by grids, but where they saw a mask; return the label of each point's grid."""
    graph = draft.graph
    watches = {name: module for name, module in named_modules(draft) if isinstance(module, Watch)}
    grids = {name: (watch.params, watch.path) for name, watch in watches.items() if watch.why_float is None}
    labels: dict[str, str] = {}
    for node in list(graph.nodes):
        module = draft.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, Watch | Follower):
            leader = module.leader if isinstance(module, Follower) else str(node.target)
            if isinstance(module, Watch):
                labels[module.path] = module.why_float or str(module.spec)
            moved = node.all_input_nodes[0]
            if leader in grids:
                with graph.inserting_before(node):
                    moved = moved_to_grid(graph, moved, *grids[leader])
            node.replace_all_uses_with(moved)
            graph.erase_node(node)
    return labels


def _quantize_weights(draft: QuantGraph, weights: dict[WeightSite, QuantSpec]) -> dict[str, str]:
    """Replace weights by integers; return what is to be said about those that need it."""
    notes: dict[str, str] = {}
    made: dict[tuple[fx.Node, QuantSpec], tuple[fx.Node, AffineParams]] = {}
    for site, spec in weights.items():
        if not spec.is_quantized:
            continue
        view = view_of(draft, site)
        known = made.get((view.weight_node, spec))
        if known is None:
            params = fitted(view, _weight_params(view, spec), view.bias(draft))
            known = constant_before(draft, view, quantize(view.weight, params), params), params
            made[view.weight_node, spec] = known
        notes[site.path] = put_weight(draft, view, *known)
    draft.graph.eliminate_dead_code()
    return notes


def _weight_params(view: SiteView, spec: QuantSpec) -> AffineParams:
    observer = observer_for(spec, f"{view.site.path}.weight", PerChannel(view.site.axis))
    if not isinstance(observer, Observer):
        raise TypeError(type(observer).__name__)
    observer.collect(view.weight)
    return observer.params


def _lines(annotated: Sequence[Annotated], left: Counter[str]) -> tuple[LayerReport, ...]:
    """Return a line for all operators that stay in float, and one for each of the others."""
    figures = tuple((name, float(count)) for name, count in sorted(left.items()))
    reason = "operators left in float" if left else "no operator left in float"
    rest = LayerReport(path="", module="graph", algorithm="pt2e", reason=reason, figures=figures)
    return rest, *(_line(item) for item in annotated if not item.operation.shares)


def _lines_left(model: nn.Module, paths: Sequence[str]) -> Iterator[LayerReport]:
    """Yield a line for each module of the float `model` with parameters that no operator at `paths` is of."""
    owners = [path for path, _ in named_modules(model)]
    said = [owner for owner in owners if any(f"{path}.".startswith(f"{owner}.") for path in paths)]
    does = "quantizes none of the operators that compute with them"
    yield from float_lines(model, "pt2e", {}, ["", *said], does=does).values()


def _line(item: Annotated) -> LayerReport:
    weight = "float"
    if item.weight is not None and item.weight.spec.is_quantized:
        unit = item.weight.spec.granularity_or(PerChannel(weight_axis(item.operation)))
        per = "per tensor" if isinstance(unit, PerTensor) else f"per channel {weight_axis(item.operation)}"
        weight = (
            f"{item.weight.spec.dtype} {'symmetric' if item.weight.spec.is_symmetric else 'asymmetric'} {per}"
        )
    return LayerReport(
        path=item.operation.path,
        module=item.operation.label,
        algorithm="pt2e",
        weight=weight,
        reason=_reason(item),
    )


def _reason(item: Annotated) -> str:
    """Return by which override an operator is left out, or nothing."""
    origin = item.act_out.origin
    if origin == TO_DECIDE:
        return "only comparisons and indices read it"
    if origin == AT_THE_OUTPUT:
        return f"only the output reads it; {AT_THE_OUTPUT}=True would give it a grid"
    specs = [item.act_out.spec, *([] if item.weight is None else [item.weight.spec])]
    if any(spec.is_quantized for spec in specs) or not origin.startswith("overrides["):
        return ""
    return f"left out by the override {origin.removeprefix('overrides[').removesuffix(']')}"


def _finished(
    line: LayerReport,
    labels: Mapping[str, str],
    notes: Mapping[str, str],
    spoiled: Mapping[str, tuple[tuple[str, float], ...]],
) -> LayerReport:
    paths = {point: f"{line.path}.{point}" for point in ("act_in", "act_out")}
    points = [f"{point} {labels[path]}" for point, path in paths.items() if path in labels]
    figures = [each for path in paths.values() for each in spoiled.get(path, ())]
    worse = [
        f"{point} is spoiled: most that lies on it needs 16 bits, or no_quant()"
        for point, path in paths.items()
        if path in spoiled
    ]
    reasons = [notes.get(line.path) or line.reason, *worse]
    return attrs.evolve(
        line,
        activation=", ".join(points) or "float",
        reason="; ".join(filter(None, reasons)),
        figures=(*line.figures, *figures),
    )
