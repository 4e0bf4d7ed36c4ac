"""Nodes that quantize and dequantize: integers in the graph, in the dialect ``quantized_decomposed``.

Values use the overloads with plain numbers, which every runtime reads; weights are constants with a scale a
channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from tico_config import INT32, DType, PerChannel, PerTensor, integer_format
from tico_modules import PackedWeight, code_dtype, dialect_operator
from tico_observers import AffineParams, quantize
from tico_pt2e._graph import QuantGraph
from tico_pt2e._literal_grids import POINT
from tico_pt2e._nodes import describe_as, new_constant, operator_of, value_of

_DEQUANTIZE: Final = ("dequantize_per_tensor", "dequantize_per_channel", "dequantize_per_channel_group")


def moved_to_grid(graph: fx.Graph, source: fx.Node, params: AffineParams, point: str) -> fx.Node:
    """Return a node for the value of `source` moved to a grid per tensor; inserted at the graph's cursor.

    `point` is the path of the point whose grid it is.
    """
    dtype = integer_format(params.dtype)
    grid = (params.scale.item(), int(params.zero_point.item()), dtype.qmin, dtype.qmax, code_dtype(dtype))
    codes = graph.call_function(dialect_operator("quantize_per_tensor"), (source, *grid))
    value = value_of(source)
    narrow = value is not None and value.dtype != torch.float32
    wanted: dict[str, Argument] = {"out_dtype": value.dtype} if value is not None and narrow else {}
    values = graph.call_function(dialect_operator("dequantize_per_tensor"), (codes, *grid), wanted)
    describe_as(values, source)
    describe_as(codes, source)
    values.meta[POINT] = point
    codes.meta.pop("val", None)
    return values


def constant_on_grid(
    model: QuantGraph, owner: str, name: str, value: Tensor, params: AffineParams
) -> fx.Node:
    """Return a node for the constant `value`, kept as the codes of a grid; inserted at the graph's cursor."""
    return constant_of_codes(model, owner, name, quantize(value, params), params, value.dtype)


def constant_of_codes(
    model: QuantGraph, owner: str, name: str, codes: Tensor, params: AffineParams, out: torch.dtype
) -> fx.Node:
    """Return a node that dequantizes `codes`, which are kept as a constant, to the format `out`."""
    graph, dtype = model.graph, integer_format(params.dtype)
    kept = codes.to(code_dtype(dtype))
    stored = new_constant(model, graph, owner, f"{name}_codes", kept)
    limits = (dtype.qmin, dtype.qmax, code_dtype(dtype))
    wanted: dict[str, Argument] = {} if out == torch.float32 else {"out_dtype": out}
    if not isinstance(params.granularity, PerChannel):
        grid = (params.scale.item(), int(params.zero_point.item()))
        node = graph.call_function(
            dialect_operator("dequantize_per_tensor"), (stored, *grid, *limits), wanted
        )
    else:
        scale = new_constant(model, graph, owner, f"{name}_scale", params.scale)
        zero_point = new_constant(
            model, graph, owner, f"{name}_zero_point", params.zero_point.to(torch.int64)
        )
        axis = params.granularity.axis % codes.ndim
        channels = (stored, scale, zero_point, axis, *limits)
        node = graph.call_function(dialect_operator("dequantize_per_channel"), channels, wanted)
    node.meta["val"] = codes.new_empty(codes.shape, dtype=out)
    return node


def bias_params(weight: AffineParams, input_scale: float, channels: int) -> AffineParams | None:
    """Return the int32 grid of a bias: the scale of the input times those of the weight's channels.

    None where a scale is no normal number. (Jacob et al. 2017, arXiv 1712.05877, section 2.4.)
    """
    scale = weight.scale.to(torch.float64) * input_scale
    if scale.numel() not in (1, channels):
        scale = scale.repeat(channels // scale.numel())
    scale = scale.to(torch.float32)
    smallest = torch.finfo(torch.float32).smallest_normal
    if not bool((scale.isfinite() & (scale >= smallest)).all()):
        return None
    granularity = weight.granularity if scale.ndim == 0 else PerChannel(0)
    zeros = torch.zeros_like(scale, dtype=torch.int32)
    return AffineParams(scale=scale, zero_point=zeros, dtype=INT32, granularity=granularity)


def constant_of_groups(
    model: QuantGraph, owner: str, packed: PackedWeight, place: fx.Node, shape: torch.Size
) -> fx.Node:
    """Return a node, before `place`, for a weight whose rows have a grid for each group of columns.

    Columns that are no neighbours in their group are put there by an index; `shape` is the weight's own, the
    outputs in front.
    """
    graph, dtype, codes = model.graph, integer_format(packed.dtype), packed.integer_codes()
    order = None if packed.group_index is None else torch.argsort(packed.group_index, stable=True)
    kept = (codes if order is None else codes[:, order]).to(code_dtype(dtype))
    limits = (dtype.qmin, dtype.qmax, code_dtype(dtype), packed.group_size, torch.float32)
    with graph.inserting_before(place):
        stored = new_constant(model, graph, owner, "weight_codes", kept)
        scale = new_constant(model, graph, owner, "weight_scale", packed.scale)
        zero_point = new_constant(model, graph, owner, "weight_zero_point", packed.zero_point)
        node = graph.call_function(
            dialect_operator("dequantize_per_channel_group"), (stored, scale, zero_point, *limits)
        )
        if packed.offset is not None:
            offset = new_constant(model, graph, owner, "weight_offset", packed.offset)
            spread = torch.ops.aten.repeat_interleave.self_int
            lowered = graph.call_function(spread, (offset, packed.group_size, 1))
            node = graph.call_function(torch.ops.aten.sub.Tensor, (node, lowered))
        if order is not None:
            index = new_constant(model, graph, owner, "weight_index", torch.argsort(order))
            node = graph.call_function(torch.ops.aten.index_select.default, (node, 1, index))
        if len(shape) > 2:
            node = graph.call_function(torch.ops.aten.reshape.default, (node, list(shape)))
    return node


def grid_of(node: fx.Node) -> tuple[DType, PerTensor | PerChannel] | None:
    """Return format and unit of the grid that `node` dequantizes from; None where it is another node."""
    kind = operator_of(node)
    if kind not in ("dequantize_per_tensor", "dequantize_per_channel"):
        return None
    low, high = node.args[-3], node.args[-2]
    if not isinstance(low, int) or not isinstance(high, int):
        return None
    dtype = DType((high - low).bit_length(), signed=low < 0)
    axis = node.args[3]
    return dtype, PerTensor() if kind == "dequantize_per_tensor" else PerChannel(
        axis if isinstance(axis, int) else 0
    )


def give_readers_their_own(graph: fx.Graph) -> None:
    """Let every reader of a dequantized value dequantize for itself, as patterns of runtimes expect.

    XNNPACK's partitioner takes an operator with the nodes that dequantize its inputs: one that is shared with
    an operator outside of the partition can close a cycle.
    """
    for node in [each for each in graph.nodes if operator_of(each) in _DEQUANTIZE]:
        for reader in [*node.users][1:]:
            with graph.inserting_after(node):
                again = graph.node_copy(node)
            reader.replace_input_with(node, again)


def shared_value(node: fx.Node) -> fx.Node:
    """Return the node that stands for all that dequantize the same codes as `node` in the same way."""
    if operator_of(node) not in _DEQUANTIZE:
        return node
    alike = {user for user in node.all_input_nodes[0].users if user.target == node.target}
    nodes: Iterable[fx.Node] = node.graph.nodes
    return next(each for each in nodes if each in alike and each.args == node.args)
