"""What a graph is freed of before it is quantized: copies, batch norms, computed weights."""

from __future__ import annotations

import operator

import torch
from torch import Tensor, fx

from tico_pt2e._graph import QuantGraph
from tico_pt2e._nodes import (
    argument,
    constant_value,
    module_of,
    new_constant,
    node_argument,
    operator_of,
    tensor_of,
    with_argument,
)
from tico_pt2e._patterns import PATTERNS

_INFERENCE = "_native_batch_norm_legit_no_training"
_COPIES = ("clone", "alias", "detach", "lift_fresh_copy", "contiguous", "dropout")
_VIEWS = (torch.ops.aten.view.default, torch.ops.aten._unsafe_view.default)
_LAYERS = ("linear", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d")


def without_copies(graph: fx.Graph) -> None:
    """Drop copies, as the graph writes to no tensor; views then take tensors of any layout."""
    for node in list(graph.nodes):
        if node.target in _VIEWS:
            node.target = torch.ops.aten.reshape.default
        source = node_argument(node, 0)
        if source is not None and operator_of(node) in _COPIES:
            node.replace_all_uses_with(source)
            graph.erase_node(node)


def plain_batch_norms(graph: fx.Graph) -> None:
    """Put one operator with one result in the place of the form that the exporter leaves."""
    for node in list(graph.nodes):
        if operator_of(node) != _INFERENCE or any(argument(user, 1) != 0 for user in node.users):
            continue
        x, weight, bias, mean, variance, momentum, eps = node.args
        arguments = (x, weight, bias, mean, variance, False, momentum, eps, False)
        with graph.inserting_before(node):
            new = graph.call_function(torch.ops.aten.batch_norm.default, arguments)
        for user in list(node.users):
            if user.target is operator.getitem:
                new.meta = dict(user.meta) | {"nn_module_stack": node.meta.get("nn_module_stack")}
                user.replace_all_uses_with(new)
                graph.erase_node(user)
        graph.erase_node(node)


def fold_batch_norms(model: QuantGraph) -> None:
    """Fold every batch norm that alone reads the result of a layer into the layer's weight and bias.

    With g the norm's weight over the standard deviation, W becomes g W and b becomes g (b - mean) + bias
    (Jacob et al. 2017, arXiv 1712.05877, section 3.2); computed in float64.
    """
    for node in list(model.graph.nodes):
        layer = node_argument(node, 0)
        if operator_of(node) == "batch_norm" and layer is not None and _can_take(model, layer, node):
            _fold(model, layer, node)


def _can_take(model: QuantGraph, layer: fx.Node, norm: fx.Node) -> bool:
    constants = [node_argument(layer, 1), node_argument(norm, 3), node_argument(norm, 4)]
    return (
        operator_of(layer) in _LAYERS
        and len(layer.users) == 1
        and argument(norm, 5) is False
        and all(tensor_of(model, node) is not None for node in constants)
        and (not operator_of(layer).startswith("conv_transpose") or argument(layer, 6) in (None, 1))
    )


def _fold(model: QuantGraph, layer: fx.Node, norm: fx.Node) -> None:
    constants = [tensor_of(model, node_argument(layer, position)) for position in (1, 2)]
    weight, bias = constants
    gamma, beta, mean, variance = (
        tensor_of(model, node_argument(norm, position)) for position in range(1, 5)
    )
    if weight is None or mean is None or variance is None:
        return
    eps = argument(norm, 7)
    deviation = (variance.double() + (eps if isinstance(eps, float) else 0.0)).sqrt()
    factor = (1.0 if gamma is None else gamma.double()) / deviation
    offset = (0.0 if bias is None else bias.double()) - mean.double()
    shift = offset * factor + (0.0 if beta is None else beta.double())
    shape = [1] * weight.ndim
    shape[PATTERNS[operator_of(layer)].axis] = -1
    holder = node_argument(layer, 1)
    owner = "" if holder is None else str(holder.target).rpartition(".")[0]
    _replace(model, layer, owner, 1, "folded_weight", (weight.double() * factor.view(shape)).to(weight.dtype))
    _replace(model, layer, owner, 2, "folded_bias", shift.to(weight.dtype))
    norm.replace_all_uses_with(layer)
    model.graph.erase_node(norm)


def _replace(model: QuantGraph, layer: fx.Node, owner: str, position: int, name: str, value: Tensor) -> None:
    with model.graph.inserting_before(layer):
        constant = new_constant(model, model.graph, owner, name, value)
    with_argument(layer, position, constant)


def fold_constant_weights(model: QuantGraph) -> None:
    """Compute weights that follow from constants alone, such as those of parametrized modules."""
    for node in list(model.graph.nodes):
        pattern = PATTERNS.get(operator_of(node))
        if pattern is None or pattern.weight is None:
            continue
        weight = node_argument(node, pattern.weight)
        if weight is None or weight.op == "get_attr":
            continue
        value = constant_value(model, weight)
        if value is not None and value.is_floating_point():
            with model.graph.inserting_before(node):
                folded = new_constant(model, model.graph, module_of(node)[0], "computed_weight", value)
            with_argument(node, pattern.weight, folded)
