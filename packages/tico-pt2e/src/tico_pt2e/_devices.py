"""Graphs that move to another device: their nodes name devices too, for example where they make a mask."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final, TypeAlias

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from tico_config import Found, Problem, UnsupportedError
from tico_pt2e._nodes import operator_of, value_of

Change: TypeAlias = Callable[[Tensor], Tensor]
"""What ``to``, ``cuda`` or ``half`` do to each tensor of a module."""

_SCALED: Final = ("dequantize_per_channel", "dequantize_per_channel_group")


def moving(change: Change) -> Change:
    """Return a change that puts tensors on the devices where `change` puts them, and casts none."""

    def moved(tensor: Tensor) -> Tensor:
        changed = change(tensor)
        return changed if changed.dtype == tensor.dtype else tensor.to(changed.device)

    return moved


def require_no_cast(model: fx.GraphModule, change: Change) -> None:
    """Refuse a `change` that would cast what the graph of `model` computes with. Scales are never cast.

    Raises:
        UnsupportedError: naming both formats.
    """
    for dtype, device in dict.fromkeys(_formats(model)):
        wanted = change(torch.empty(0, dtype=dtype, device=device)).dtype
        if wanted != dtype:
            sentence = (
                f"a graph keeps the formats that it was exported in, {dtype} here, and {wanted} was asked for"
            )
            remedy = "cast the float model and prepare it again, or move the graph with .to(device) alone"
            raise UnsupportedError(
                Problem(
                    field="dtype",
                    value=Found(str(wanted)),
                    expected=str(dtype),
                    sentence=sentence,
                    remedy=remedy,
                )
            )


def _formats(model: fx.GraphModule) -> Iterator[tuple[torch.dtype, torch.device]]:
    """Yield the formats of floats that the graph takes or holds, but those of scales."""
    scales = {str(node.args[1].target) for node in model.graph.nodes if operator_of(node) in _SCALED}
    for node in model.graph.nodes:
        value = value_of(node) if node.op == "placeholder" else None
        if value is not None and value.is_floating_point():
            yield value.dtype, value.device
    for holder in (model.named_parameters(), model.named_buffers()):
        for path, tensor in holder:
            if tensor.is_floating_point() and path not in scales:
                yield tensor.dtype, tensor.device


def move_nodes(model: nn.Module, change: Change) -> None:
    """Let the nodes of the graphs in `model` name the devices where `change` puts tensors of theirs."""
    known: dict[torch.device, torch.device] = {}

    def moved(argument: Argument) -> Argument:
        if not isinstance(argument, torch.device):
            return argument
        if argument not in known:
            known[argument] = change(torch.empty(0, device=argument)).device
        return known[argument]

    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            _move_nodes(module, moved)


def _move_nodes(module: fx.GraphModule, moved: Callable[[Argument], Argument]) -> None:
    changed = False
    for node in module.graph.nodes:
        arguments = fx.node.map_aggregate(node.args, moved), fx.node.map_aggregate(node.kwargs, moved)
        if arguments != (node.args, node.kwargs):
            node.args, node.kwargs = arguments
            changed = True
    if changed:
        module.recompile()
