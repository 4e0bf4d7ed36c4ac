"""Norms that are written out in elementary operators, as those of LLaMA and T5 are: made one operator."""

from __future__ import annotations

import attrs
import torch
from torch import fx

from tico_pt2e._nodes import argument, node_argument, operator_of, value_of


@attrs.frozen(eq=False)
class _Norm:
    """The nodes of ``x * rsqrt(mean(x²) + eps)``, and of the product with a weight behind it."""

    source: fx.Node
    eps: float
    last: fx.Node
    weight: fx.Node | None


def whole_norms(graph: fx.Graph) -> None:
    """Put the operator in the place of each root-mean-square norm over the last axis that is written out.

    The result is the same; its steps, the mean square above all, are no activations that grids are found
    for: it may differ from token to token by more than 8 bits can tell apart.
    """
    for node in list(graph.nodes):
        norm = _norm_at(node)
        size = None if norm is None else _features(norm.source)
        if norm is None or size is None:
            continue
        with graph.inserting_before(norm.last):
            arguments = (norm.source, [size], norm.weight, norm.eps)
            whole = graph.call_function(torch.ops.aten.rms_norm.default, arguments)
        whole.meta = dict(norm.last.meta)
        norm.last.replace_all_uses_with(whole)
    graph.eliminate_dead_code()


def _norm_at(node: fx.Node) -> _Norm | None:
    """Return the norm whose first product, or quotient, is `node`."""
    operator, operands = operator_of(node), (node_argument(node, 0), node_argument(node, 1))
    for source, scale in (operands, operands[::-1]) if operator == "mul" else (operands,):
        inverse = {"mul": "rsqrt", "div": "sqrt"}.get(operator)
        if source is None or scale is None or operator_of(scale) != inverse:
            continue
        eps = _eps(node_argument(scale, 0), source)
        if eps is not None:
            return _weighted(node, source, eps)
    return None


def _eps(total: fx.Node | None, source: fx.Node) -> float | None:
    """Return what is added to the mean square of `source` over the last axis, if `total` is that."""
    mean = None if total is None or operator_of(total) != "add" else node_argument(total, 0)
    square = None if mean is None or operator_of(mean) != "mean" else node_argument(mean, 0)
    if total is None or mean is None or square is None or not _is_square(square, source):
        return None
    value, eps = value_of(square), argument(total, 1)
    over_last = value is not None and argument(mean, 1) in ([-1], [value.ndim - 1])
    is_whole = over_last and argument(mean, 2) is True and not total.kwargs and not mean.kwargs
    return float(eps) if is_whole and isinstance(eps, float | int) else None


def _is_square(node: fx.Node, source: fx.Node) -> bool:
    factors = (argument(node, 0), argument(node, 1))
    match operator_of(node):
        case "pow":
            return factors[0] is source and factors[1] in (2, 2.0)
        case "mul":
            return factors[0] is source and factors[1] is source
        case _:
            return False


def _weighted(node: fx.Node, source: fx.Node, eps: float) -> _Norm:
    """Return the norm that ends with `node`, or with the product behind it that applies a weight."""
    following = [*node.users]
    if len(following) == 1 and operator_of(following[0]) == "mul":
        others = [factor for factor in following[0].all_input_nodes if factor is not node]
        if len(others) == 1 and _is_weight(others[0], source):
            return _Norm(source, eps, following[0], others[0])
    return _Norm(source, eps, node, None)


def _is_weight(node: fx.Node, source: fx.Node) -> bool:
    value, read = value_of(node), value_of(source)
    if node.op != "get_attr" or value is None or read is None:
        return False
    return list(value.shape) == [_features(source)] and value.dtype == read.dtype


def _features(node: fx.Node) -> int | None:
    """Return the size of the last axis where it is fixed."""
    value = value_of(node)
    size = value.shape[-1] if value is not None and value.ndim else None
    return size if type(size) is int else None
