"""Typed views of the nodes of an fx graph."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol, cast

import torch
from torch import Tensor, fx, nn
from torch.fx.node import Argument

from tico_modules import child_path

_FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def operator_of(node: fx.Node) -> str:
    """Return the operator that `node` calls, without namespace and overload; empty for other nodes."""
    if node.op != "call_function":
        return ""
    parts = str(node.target).split(".")
    if len(parts) == 3:
        return parts[1]
    name: object = getattr(node.target, "__name__", node.target)
    return str(name)


def writes(node: fx.Node) -> bool:
    """Return whether `node` writes to one of the tensors that it is given."""
    schema: object = getattr(node.target, "_schema", None)
    return node.op == "call_function" and bool(getattr(schema, "is_mutable", False))


def value_of(node: fx.Node) -> Tensor | None:
    """Return the (fake) tensor that `node` gave when it was exported; None if it gave no single tensor."""
    value: object = node.meta.get("val")
    return value if isinstance(value, Tensor) else None


def is_float(node: fx.Node) -> bool:
    """Return whether `node` gives a tensor in a format that can be quantized."""
    value = value_of(node)
    return value is not None and value.dtype in _FLOATS


def module_of(node: fx.Node) -> tuple[str, str]:
    """Return path and dotted type of the module that `node` comes from; a root's path is empty."""
    stack: Mapping[str, tuple[str, object]] = node.meta.get("nn_module_stack") or {}
    if not stack:
        return "", ""
    path, kind = [*stack.values()][-1]
    name = f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)
    # A module that is called again has a number behind its path.
    return path.partition("@")[0], name


def argument(node: fx.Node, position: int) -> object:
    """Return the positional argument of `node`, None where there is none."""
    return node.args[position] if position < len(node.args) else None


def node_argument(node: fx.Node, position: int) -> fx.Node | None:
    """Return the positional argument of `node` if it is a node."""
    found = argument(node, position)
    return found if isinstance(found, fx.Node) else None


def attribute(root: nn.Module, path: str) -> Tensor:
    """Return the tensor that a node ``get_attr`` for `path` gives."""
    owner, _, name = path.rpartition(".")
    found: Tensor = getattr(root.get_submodule(owner), name)
    return found.detach()


def tensor_of(root: nn.Module, node: fx.Node | None) -> Tensor | None:
    """Return the constant tensor that `node` stands for, None where it is no constant."""
    return attribute(root, str(node.target)) if node is not None and node.op == "get_attr" else None


def new_constant(root: nn.Module, graph: fx.Graph, owner: str, name: str, value: Tensor) -> fx.Node:
    """Register `value` as a buffer below the module at `owner` and return a node for it."""
    module = container(root, owner)
    unused, number = name, 0
    while hasattr(module, unused):
        number += 1
        unused = f"{name}_{number}"
    module.register_buffer(unused, value)
    node = graph.get_attr(child_path(owner, unused))
    node.meta["val"] = value
    return node


def container(root: nn.Module, path: str) -> nn.Module:
    """Return the module at `path`, made where it does not exist."""
    module = root
    for name in path.split(".") if path else ():
        if name not in module._modules:
            module.add_module(name, nn.Module())
        module = module.get_submodule(name)
    return module


def constant_value(root: nn.Module, node: fx.Node) -> Tensor | None:
    """Return the tensor that `node` gives in every call; None where that may differ."""
    found = _constant(root, node, {})
    return found if isinstance(found, Tensor) else None


def _constant(root: nn.Module, node: fx.Node, known: dict[fx.Node, object]) -> object:
    """Return what `node` gives in every call, None where that may differ; `known` are results so far."""
    if node not in known:
        known[node] = attribute(root, str(node.target)) if node.op == "get_attr" else None
        sources = {source: _constant(root, source, known) for source in node.all_input_nodes}
        if _is_certain(node) and all(value is not None for value in sources.values()):
            known[node] = _called(node, sources)
    return known[node]


def _is_certain(node: fx.Node) -> bool:
    """Return whether `node` calls a function whose result follows from its arguments."""
    tags: Collection[object] = getattr(node.target, "tags", ())
    return node.op == "call_function" and torch.Tag.nondeterministic_seeded not in tags


def _called(node: fx.Node, sources: Mapping[fx.Node, object]) -> object:
    call = cast("_Call", node.target)
    values: Mapping[fx.Node, Argument] = cast("Mapping[fx.Node, Argument]", sources)
    arguments = cast("tuple[object, ...]", fx.map_arg(node.args, values.__getitem__))
    keywords = cast("dict[str, object]", fx.map_arg(node.kwargs, values.__getitem__))
    return call(*arguments, **keywords)


class _Call(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


def node_called(graph: fx.Graph, name: str) -> fx.Node:
    """Return the node of that name."""
    found: fx.Node = next(node for node in graph.nodes if node.name == name)
    return found


def with_argument(node: fx.Node, position: int, value: fx.Node) -> None:
    """Set a positional argument of `node`; those left out before it become None."""
    arguments = [*node.args, *[None] * (position + 1 - len(node.args))]
    arguments[position] = value
    node.args = tuple(arguments)


def describe_as(node: fx.Node, source: fx.Node) -> None:
    """Let `node` pass for a result of the module that gives `source`, with a value of the same shape."""
    for key in ("val", "nn_module_stack"):
        if key in source.meta:
            node.meta[key] = source.meta[key]
