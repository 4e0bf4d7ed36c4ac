"""What dialects ask of a graph: one pair of nodes a grid, biases in float, weights as floats on a grid."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor, fx

from tico_export.program._constants import constant_of, is_constant, new_constant
from tico_export.program._rewriting import input_of, operator_of, tensor_at
from tico_modules import dialect_operator

_GROUPS: Final = "dequantize_per_channel_group"
_KERNEL_SIZES: Final = (128, 64, 32, 16)


def without_repeated_grids(module: fx.GraphModule) -> None:
    """Drop a pair of nodes for a grid that its input is on already: moving there again changes nothing."""
    for node in list(module.graph.nodes):
        codes = input_of(node, 0)
        before = None if codes is None else input_of(codes, 0)
        if before is None or codes is None or operator_of(node) != "dequantize_per_tensor":
            continue
        same = operator_of(before) == operator_of(node) and before.args[1:] == node.args[1:]
        quantizes = operator_of(codes) == "quantize_per_tensor" and codes.args[1:] == node.args[1:]
        if same and quantizes and before.kwargs == node.kwargs:
            node.replace_all_uses_with(before)
            module.graph.erase_node(node)
            if not codes.users:
                module.graph.erase_node(codes)


def with_own_grids(module: fx.GraphModule) -> None:
    """Let every reader of a dequantized value dequantize for itself, as patterns of runtimes expect."""
    for node in list(module.graph.nodes):
        if not operator_of(node).startswith("dequantize_"):
            continue
        for reader in list(node.users)[1:]:
            with module.graph.inserting_after(node):
                again = module.graph.node_copy(node)
            reader.replace_input_with(node, again)


def with_float_biases(module: fx.GraphModule) -> None:
    """Put floats in the place of constants whose codes have more than 16 bits, which are biases."""
    for node in list(module.graph.nodes):
        source = input_of(node, 0)
        if not operator_of(node).startswith("dequantize_") or source is None or not is_constant(source):
            continue
        if constant_of(module, source).dtype == torch.int32:
            _replace(module, node, new_constant(module, node, "bias", constant_of(module, node)))


def with_unfolded_weights(module: fx.GraphModule) -> None:
    """Put a float weight that is quantized and dequantized in the place of one that is dequantized."""
    for node in list(module.graph.nodes):
        source = input_of(node, 0)
        if operator_of(node) not in ("dequantize_per_channel", "dequantize_per_tensor") or source is None:
            continue
        if source.op == "get_attr":
            weight = new_constant(module, node, f"{source.target}_float", constant_of(module, node))
            with module.graph.inserting_before(node):
                quantize = dialect_operator(operator_of(node).removeprefix("de"))
                codes = module.graph.call_function(quantize, (weight, *node.args[1:]))
            codes.meta["val"] = tensor_at(module, source)
            node.update_arg(0, codes)


def with_grouped_products(module: fx.GraphModule) -> None:
    """Write linear layers of grouped weights as products of three axes, which runtimes have kernels for."""
    aten = torch.ops.aten
    for node in list(module.graph.nodes):
        weight, x = input_of(node, 1), input_of(node, 0)
        if operator_of(node) != "linear" or weight is None or x is None or _grouped(weight) is None:
            continue
        graph, flat = module.graph, _axes(x) == 2
        with graph.inserting_before(node):
            wide = graph.call_function(aten.unsqueeze.default, (x, 0)) if flat else x
            turned = graph.call_function(aten.permute.default, (_grouped(weight), [1, 0]))
            product = graph.call_function(aten.matmul.default, (wide, turned))
            if flat:
                product = graph.call_function(aten.squeeze.dim, (product, 0))
            bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
            if bias is not None:
                product = graph.call_function(aten.add.Tensor, (product, bias))
        _replace(module, node, product)


def with_grouped_rows(module: fx.GraphModule) -> None:
    """Give weights of linear layers with few bits and a scale a row a scale a group: the same one for all.

    Runtimes have kernels for groups of 16, 32, 64 or 128 columns.
    """
    for node in list(module.graph.nodes):
        weight = input_of(node, 1)
        if operator_of(node) != "linear" or weight is None or not _has_few_bits(weight):
            continue
        codes, scale, zero_point = (constant_of(module, each) for each in weight.all_input_nodes)
        size = next((each for each in _KERNEL_SIZES if codes.shape[1] % each == 0), None)
        if size is None:
            continue
        groups = codes.shape[1] // size
        wide = [
            new_constant(module, weight, f"{part.target}_groups", value.view(-1, 1).repeat(1, groups))
            for part, value in zip(weight.all_input_nodes[1:], (scale, zero_point), strict=True)
        ]
        with module.graph.inserting_before(node):
            arguments = (weight.args[0], *wide, *weight.args[4:], size, torch.float32)
            grouped = module.graph.call_function(dialect_operator(_GROUPS), arguments)
        grouped.meta["val"] = weight.meta.get("val")
        node.replace_input_with(weight, grouped)


def _has_few_bits(node: fx.Node) -> bool:
    """Whether `node` dequantizes constants of at most 4 bits with a scale a row."""
    source = input_of(node, 0)
    if operator_of(node) != "dequantize_per_channel" or source is None or source.op != "get_attr":
        return False
    axis, low, high = node.args[3:6]
    few = isinstance(low, int) and isinstance(high, int) and high - low < 16
    return few and isinstance(axis, int) and axis == 0


def _grouped(node: fx.Node) -> fx.Node | None:
    """Return the node that dequantizes groups, of which `node` may be a view of the same shape."""
    while operator_of(node) in ("view", "reshape", "to") and (above := input_of(node, 0)) is not None:
        node = above
    return node if operator_of(node) == _GROUPS else None


def _axes(node: fx.Node) -> int:
    value = node.meta.get("val")
    return value.ndim if isinstance(value, Tensor) else 0


def _replace(module: fx.GraphModule, node: fx.Node, other: fx.Node) -> None:
    other.meta.setdefault("val", node.meta.get("val"))
    node.replace_all_uses_with(other)
    module.graph.erase_node(node)
