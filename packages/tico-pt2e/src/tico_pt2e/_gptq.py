"""GPTQ on the graphs that PT2E leaves: their weights on its grid, by what the quantized graph shows.

Each operator with a weight gets a layer beside it that reads the same input, and these layers are what GPTQ
is run on, as on any model. Their integers then become the graph's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, final

import attrs
from torch import Tensor, fx, nn

from tico_config import (
    Found,
    GPTQConfig,
    PerChannel,
    PerTensor,
    Problem,
    UnsupportedError,
    unmatched_problems,
)
from tico_modules import Edit, LayerReport, PackedWeight, QuantizedModule, Report, children, named_modules
from tico_observers import AffineParams
from tico_pt2e._graph import QuantGraph, become, draft_of
from tico_pt2e._integers import constant_of_groups, grid_of, shared_value
from tico_pt2e._layers import layer_of, rows_of
from tico_pt2e._nodes import container
from tico_pt2e._weights import SiteView, constant_before, put_weight, view_of
from tico_quantizers.algorithms.gptq import GPTQQuantizer
from tico_quantizers.calibration import Calibration
from tico_quantizers.conversion import BlockCalibration
from tico_quantizers.protocol import BaseQuantizer, Converted, Example, Planned

_LAYERS = "gptq_layers"


@final
class GPTQEverywhere(BaseQuantizer[GPTQConfig, Calibration]):
    """GPTQ on modules, and on the graphs that PT2E leaves."""

    checks_target: ClassVar[bool] = True
    graphs: ClassVar[tuple[type[fx.GraphModule], ...]] = (QuantGraph,)

    def foresee(self, model: nn.Module, edit: Edit) -> Planned:
        """Return what would become of the layers of a model; of a graph there is no plan."""
        if isinstance(model, QuantGraph):
            return super().foresee(model, edit)
        return GPTQQuantizer(self.config).foresee(model, edit)

    def prepare(self, model: nn.Module, example: Example | None, edit: Edit) -> tuple[nn.Module, Calibration]:
        """Start to watch what the layers of a model, or the operators of a graph, read."""
        if not isinstance(model, QuantGraph):
            return GPTQQuantizer(self.config).prepare(model, example, edit)
        draft = draft_of(model)
        views = _views(draft)
        self._require_integers(views)
        kept = [view.site.path for view in views if self._keeps(view)]
        layers = {
            view.site.path: (view, layer)
            for view in views
            if view.site.path not in kept and (layer := layer_of(view)) is not None
        }
        if kept and not layers:
            return model, Calibration()
        tree = _tree({path: layer for path, (_, layer) in layers.items()})
        _, calibration = GPTQQuantizer(self._without(kept, list(layers))).prepare(tree, example, edit)
        draft.add_module(_LAYERS, tree)
        for path, (view, _) in layers.items():
            # Layers that read one value share its Gram matrix.
            seen = None if view.activation is None else shared_value(view.activation)
            with draft.graph.inserting_before(view.node):
                draft.graph.call_module(f"{_LAYERS}.{path}", (seen,))
        become(model, draft, edit)
        return model, calibration

    def _require_integers(self, views: Sequence[SiteView]) -> None:
        """Refuse formats of floating-point elements, for which the dialect of graphs has no operators.

        Raises:
            UnsupportedError: with every weight that was to have one.
        """
        asked = {view.site.path: self.config.resolve(view.site.path).spec.dtype for view in views}
        problems = [
            Problem(module=path, field="dtype", value=Found(str(dtype)), expected="None for a graph of PT2E")
            for path, dtype in asked.items()
            if dtype is not None
        ]
        if problems:
            raise UnsupportedError(*problems)

    def convert(self, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
        """Put the new integers in the place of the weights."""
        if not isinstance(model, QuantGraph):
            return _on_modules(self.config, model, calibration, edit)
        kept = [_kept_line(view) for view in _views(model) if self._keeps(view)]
        if not isinstance(calibration, BlockCalibration):
            return Converted(root=model, modules=(model,), report=Report(layers=tuple(kept)))
        tree = model.get_submodule(_LAYERS)
        converted = GPTQQuantizer(self.config).convert(tree, calibration, edit)
        draft = draft_of(model)
        for node in list(draft.graph.nodes):
            if node.op == "call_module" and str(node.target).startswith(f"{_LAYERS}."):
                draft.graph.erase_node(node)
        known = {layer.path: layer for layer in converted.report.layers}
        lines = [
            line for line in known.values() if line.path not in {view.site.path for view in _views(model)}
        ]
        for view in _views(draft):
            layer = dict(named_modules(converted.root)).get(view.site.path)
            if isinstance(layer, QuantizedModule) and view.site.path in known:
                note = _put(draft, view, layer.packed, per_tensor=self._per_tensor(view))
                lines.append(_line(known[view.site.path], view, note))
        draft.graph.eliminate_dead_code()
        draft.graph.lint()
        become(model, draft, edit)
        return Converted(root=model, modules=(model,), report=Report(layers=(*lines, *kept)))

    def _per_tensor(self, view: SiteView) -> bool:
        return self.config.resolve(view.site.path).spec.per_tensor

    def _keeps(self, view: SiteView) -> bool:
        """Return whether the weight is on the very grid that is asked for."""
        asked = self.config.resolve(view.site.path).spec
        found = grid_of(view.weight_node)
        unit = PerTensor() if asked.per_tensor else PerChannel(view.site.axis)
        is_plain = view.site.operator != "embedding" and asked.shared_columns is None
        return is_plain and found == (asked.number_format, unit)

    def _without(self, kept: list[str], layers: list[str]) -> GPTQConfig:
        """Return the config without the overrides that hold for weights that are kept, and for no others."""
        idle = [
            pattern
            for pattern in self.config.overrides
            if not unmatched_problems([pattern], kept) and unmatched_problems([pattern], layers)
        ]
        left = {key: value for key, value in self.config.overrides.items() if key not in idle}
        return attrs.evolve(self.config, overrides=left)


def _on_modules(config: GPTQConfig, model: nn.Module, calibration: Calibration, edit: Edit) -> Converted:
    if not isinstance(calibration, BlockCalibration):
        raise TypeError(type(calibration).__name__)
    return GPTQQuantizer(config).convert(model, calibration, edit)


def _views(graph: QuantGraph) -> list[SiteView]:
    return [view_of(graph, site) for site in graph.sites]


def _tree(layers: Mapping[str, nn.Module]) -> nn.Module:
    """Return a module that has `layers` at their paths."""
    root = nn.Module()
    for path, layer in layers.items():
        owner, _, name = path.rpartition(".")
        parent = container(root, owner)
        for below, child in children(parent._modules.get(name) or nn.Module()).items():
            layer.add_module(below, child)
        parent.add_module(name, layer)
    return root.eval()


def _put(draft: QuantGraph, view: SiteView, packed: PackedWeight, *, per_tensor: bool) -> str:
    """Make the operator read the codes of `packed`; return what is to be said about the bias."""
    codes = packed.integer_codes()
    if packed.group_size is not None:
        node = constant_of_groups(draft, view.owner, packed, view.place, rows_of(view, view.weight).shape)
        return put_weight(draft, view, node, None)
    scale, zero_point = packed.scale[:, 0], packed.zero_point[:, 0]
    if per_tensor:
        scale, zero_point = scale[0], zero_point[0]
    axis = PerTensor() if per_tensor else PerChannel(view.site.axis)
    params = AffineParams(scale=scale, zero_point=zero_point, dtype=packed.dtype, granularity=axis)
    node = constant_before(draft, view, _in_place_shape(view, codes), params)
    return put_weight(draft, view, node, params)


def _in_place_shape(view: SiteView, codes: Tensor) -> Tensor:
    """Return codes (rows, columns), a row for each output channel, in the shape of the weight."""
    if view.site.operator.startswith("conv_transpose"):
        first, second, *kernel = view.weight.shape
        return codes.view(second, first, *kernel).transpose(0, 1).contiguous()
    return rows_of(view, codes).contiguous().view(view.weight.shape)


def _line(line: LayerReport, view: SiteView, note: str) -> LayerReport:
    reason = "; ".join(text for text in (line.reason, note) if text)
    return attrs.evolve(line, module=view.site.operator, activation=_activation(view), reason=reason)


def _kept_line(view: SiteView) -> LayerReport:
    found = grid_of(view.weight_node)
    weight = (
        "float" if found is None else f"{found[0]} {'per tensor' if found[1] == PerTensor() else 'per row'}"
    )
    return LayerReport(
        path=view.site.path,
        module=view.site.operator,
        algorithm="gptq",
        weight=weight,
        activation=_activation(view),
        reason="already on that grid, codes kept",
    )


def _activation(view: SiteView) -> str:
    found = None if view.activation is None else grid_of(view.activation)
    return "float" if found is None else f"act_in {found[0]}"
