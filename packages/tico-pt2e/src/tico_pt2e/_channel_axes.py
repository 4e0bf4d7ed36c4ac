"""On which axis of each value of a graph its channels are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from torch import Tensor, fx

from tico_pt2e._nodes import argument, operator_of, value_of

_LAST: Final = -1
_SPATIAL: Final = {f"conv{kind}{axes}d": axes for kind in ("", "_transpose") for axes in (1, 2, 3)}
_SECOND: Final = frozenset({"batch_norm", "instance_norm", "group_norm"})
_FEATURES: Final = frozenset(
    {"linear", "addmm", "matmul", "mm", "bmm", "baddbmm", "embedding", "layer_norm", "rms_norm", "softmax"}
)
_RESHAPING: Final = frozenset(
    {"view", "_unsafe_view", "reshape", "flatten", "unflatten", "squeeze", "unsqueeze"}
)


def channel_axes(graph: fx.Graph) -> Mapping[fx.Node, int]:
    """Return the axis of the channels of each value; -1 where nothing tells, as features come last.

    Convolutions have them before their spatial axes, what multiplies matrices has them last, and other
    operators leave them where they are.
    """
    found: dict[fx.Node, int] = {}
    for node in graph.nodes:
        value = value_of(node)
        if value is not None:
            found[node] = _axis(node, value, found)
    return found


def _axis(node: fx.Node, value: Tensor, known: Mapping[fx.Node, int]) -> int:
    operator = operator_of(node)
    if node.op == "placeholder":
        spatial = [_SPATIAL[operator_of(user)] for user in node.users if operator_of(user) in _SPATIAL]
        return value.ndim - 1 - spatial[0] if spatial else _LAST
    if operator in _SPATIAL:
        return value.ndim - 1 - _SPATIAL[operator]
    if operator in _SECOND:
        return 1
    sources = [source for source in node.all_input_nodes if source in known]
    if operator in _FEATURES or not sources:
        return _LAST
    # The channels of a sum are those of its largest term: the others are broadcast.
    source = max(sources, key=_axes_of)
    return _moved(node, operator, source, known[source], value)


def _axes_of(node: fx.Node) -> int:
    value = value_of(node)
    return 0 if value is None else value.ndim


def _moved(node: fx.Node, operator: str, source: fx.Node, axis: int, value: Tensor) -> int:
    """Return where the channels on `axis` of `source` are in the result of `node`."""
    before = value_of(source)
    if axis == _LAST or before is None:
        return _LAST
    if operator == "permute":
        order = argument(node, 1)
        return [at % before.ndim for at in order].index(axis) if isinstance(order, list | tuple) else _LAST
    if operator in ("transpose", "t"):
        first, second = (argument(node, 1), argument(node, 2)) if operator == "transpose" else (0, 1)
        ends = [end % before.ndim for end in (first, second) if isinstance(end, int)]
        return ends[1 - ends.index(axis)] if axis in ends else axis
    if operator in _RESHAPING:
        return axis if _is_kept(before, value, axis) else _LAST
    return axis if value.ndim == before.ndim else _LAST


def _is_kept(before: Tensor, after: Tensor, axis: int) -> bool:
    """Return whether axes up to `axis` are as they were, as when pixels become tokens."""
    return axis < after.ndim and str(before.shape[: axis + 1]) == str(after.shape[: axis + 1])
