"""Which values of a graph hold data, and which follow from constants, shapes and positions alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from torch import fx

from tico_modules import PackedWeight
from tico_pt2e._nodes import is_float, module_of, operator_of, value_of, writes

_WEIGHTED: Final = frozenset(
    {"linear", "addmm", *(f"conv{kind}{axes}d" for kind in ("", "_transpose") for axes in (1, 2, 3))}
)
_PLACES: Final = frozenset({"topk", "sort", "max", "min", "kthvalue", "median", "mode"})
_PIXELS: Final = (torch.uint8, torch.int8)
_PACKED: Final = f"{PackedWeight.__module__}.{PackedWeight.__qualname__}"
_SIZES: Final = (int, float, torch.SymInt, torch.SymFloat, torch.SymBool)


def data_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes whose values hold data.

    Data come in as floats, or as bytes, as pictures do; integers and booleans are tokens, positions and
    masks. An embedding makes data of them, and so does a layer with weights of anything that depends on an
    input, such as the sinusoids of a time step. What is computed from data is data, except integers and
    booleans: they are choices, which a grid could change. Rotary angles, position buckets and masks are no
    data.
    """
    given = _closed(graph, lambda node: node.op == "placeholder", lambda node: True)
    return _closed(graph, lambda node: _is_source(node, given), _may_hold_data)


def deciding_nodes(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes whose numbers only decide: comparisons, buckets, sorting and indices read them alone.

    A grid would move such numbers over the limits that they are compared with.
    """
    found: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        if node.users and all(user in found or _makes_integers(user) for user in node.users):
            found.add(node)
    return frozenset(node for node in found if is_float(node))


def _makes_integers(node: fx.Node) -> bool:
    """Whether a node gives integers or booleans alone; what gives a shape or a number reads as numbers."""
    value = value_of(node)
    if value is not None:
        return not (writes(node) or value.is_floating_point() or value.is_complex())
    # Of a result with its places, as those of the largest few, it may be that only the places are read.
    return operator_of(node) in _PLACES and all(map(_makes_integers, node.users))


def _closed(
    graph: fx.Graph, is_source: Callable[[fx.Node], bool], passes: Callable[[fx.Node], bool]
) -> frozenset[fx.Node]:
    """Return the sources, and everything computed from one of them by way of nodes that `passes` lets by."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if is_source(node) or (passes(node) and not found.isdisjoint(node.all_input_nodes)):
            found.add(node)
    return frozenset(found)


def _may_hold_data(node: fx.Node) -> bool:
    """Whether `node` gives floats, complex numbers, bytes of a picture, or several tensors."""
    value = value_of(node)
    if value is None:
        return not isinstance(node.meta.get("val"), _SIZES)
    return value.is_floating_point() or value.is_complex() or value.dtype in _PIXELS


def _is_source(node: fx.Node, given: frozenset[fx.Node]) -> bool:
    if node.op == "placeholder":
        value = value_of(node)
        return is_float(node) or (value is not None and value.dtype in _PIXELS)
    operator = operator_of(node)
    if operator in ("embedding", "embedding_bag"):
        return True
    return node in given and (operator in _WEIGHTED or _is_looked_up(node))


def _is_looked_up(node: fx.Node) -> bool:
    """Whether `node` is the last of the operators that look up rows of an integer weight."""
    home = module_of(node)
    return home[1] == _PACKED and is_float(node) and any(module_of(user) != home for user in node.users)
