"""Constants of a graph: what follows from tensors of the model alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import torch
from torch import Tensor, fx
from torch.fx.node import Argument

from tico_export.program._rewriting import input_of, operator_of, tensor_at

_WEIGHTS: Final = ("dequantize_per_channel", "dequantize_per_channel_group", "dequantize_per_tensor")
_PARTS: Final[Mapping[int, str]] = {0: "codes", 1: "scale", 2: "zero_point"}


def fold_codes(module: fx.GraphModule) -> None:
    """Compute the codes, scales and zero points of every constant that is dequantized.

    What unpacks them stood in the graph; afterwards they are tensors, zero points int64 as in torch.
    """
    for node in list(module.graph.nodes):
        source = input_of(node, 0)
        if operator_of(node) not in _WEIGHTS or source is None or not _holds_codes(source):
            continue
        owner = _owner(source)
        for position, part in _PARTS.items():
            given = input_of(node, position)
            if given is not None:
                value = constant_of(module, given)
                kept = value.long() if part == "zero_point" else value
                node.update_arg(position, new_constant(module, node, f"{owner}weight_{part}", kept))


def _holds_codes(node: fx.Node) -> bool:
    """Whether integers are constants of the model, and not values that the graph quantizes, as positions."""
    return is_constant(node) and not operator_of(node).startswith("quantize_")


def is_constant(node: fx.Node) -> bool:
    """Whether `node` follows from tensors of the model alone."""
    if node.op == "get_attr":
        return True
    inputs = node.all_input_nodes
    return node.op == "call_function" and bool(inputs) and all(map(is_constant, inputs))


def constant_of(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return the value of a node that `is_constant`."""
    if node.op == "get_attr":
        return tensor_at(module, node).detach()

    def valued(argument: fx.Node) -> Argument:
        return constant_of(module, argument)

    args, kwargs = fx.map_arg((node.args, node.kwargs), valued)
    with torch.no_grad():
        value: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]  # it is a `call_function`
    return value


def new_constant(module: fx.GraphModule, place: fx.Node, name: str, value: Tensor) -> fx.Node:
    """Return a node, before `place`, for the tensor `value`, which is kept under a name like `name`."""
    flat = name.replace(".", "_")
    free, count = flat, 1
    while hasattr(module, free):
        free, count = f"{flat}_{count}", count + 1
    module.register_buffer(free, value.contiguous())
    with module.graph.inserting_before(place):
        node = module.graph.get_attr(free)
    node.meta["val"] = value
    return node


def _owner(node: fx.Node) -> str:
    """Return the path of the layer that the first tensor below `node` belongs to, with a dot at its end."""
    while node.op != "get_attr":
        node = node.all_input_nodes[0]
    path = str(node.target).rpartition(".")[0].removesuffix("packed").removesuffix(".")
    return f"{path}." if path else ""
