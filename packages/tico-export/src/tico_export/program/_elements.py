"""Weights of floating-point elements in a graph: one operator on codes and scales each."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor, fx

from tico_config import FloatFormat
from tico_export.program._constants import constant_of, is_constant, new_constant
from tico_export.program._rewriting import Pass
from tico_export.source import QuantizedWeight, Source

DTYPES: Final[Mapping[str, torch.dtype]] = {"e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2}
"""The formats of torch that hold elements, by their names."""

_CODES: Final = "packed.codes"
Operator: TypeAlias = Callable[[Tensor, Tensor, int], Tensor]


@functools.cache
def element_operator() -> Operator:
    """Return ``tico_export::dequantize_elements``, which is registered by the first call.

    It takes codes (rows, columns) in a float8 format, scales (rows, groups), and the columns of a group.

    >>> codes = torch.tensor([[1.0, 0.5]]).to(torch.float8_e4m3fn)
    >>> element_operator()(codes, torch.tensor([[2.0]]), 2)
    tensor([[2., 1.]])
    """
    torch.library.custom_op("tico_export::dequantize_elements", _dequantize, mutates_args=()).register_fake(
        lambda codes, scale, size: torch.empty_like(codes, dtype=torch.float32)
    )
    found: Operator = torch.ops.tico_export.dequantize_elements.default
    return found


def _dequantize(codes: Tensor, scale: Tensor, size: int) -> Tensor:
    groups = codes.to(torch.float32).view(*scale.shape, size)
    return (groups * scale.unsqueeze(-1)).view(codes.shape)


def with_elements(source: Source) -> Pass:
    """Return the pass that computes each weight of 8-bit elements by `element_operator`.

    What decodes them stood in the graph. What turns or reshapes the weight afterwards stays there.
    """
    weights = {
        f"{path}.{_CODES}" if path else _CODES: weight
        for path, weight in source.weights.items()
        if isinstance(weight.dtype, FloatFormat) and weight.dtype.encoding.name in DTYPES
    }

    def change(module: fx.GraphModule) -> None:
        for codes in [node for node in module.graph.nodes if str(node.target) in weights]:
            weight = weights[str(codes.target)]
            decoded = _decoded(module, codes, weight)
            if decoded is not None:
                _compute(module, decoded, weight)

    return change


def _decoded(module: fx.GraphModule, codes: fx.Node, weight: QuantizedWeight) -> fx.Node | None:
    """Return the last node that is the very weight; None where rows are decoded as they are read."""
    followers = {codes}
    for node in module.graph.nodes:
        if is_constant(node) and not followers.isdisjoint(node.all_input_nodes):
            followers.add(node)
    values = weight.dequantize()
    alike = (node for node in reversed(module.graph.nodes) if node in followers and _is_like(node, values))
    return next((node for node in alike if torch.equal(constant_of(module, node), values)), None)


def _is_like(node: fx.Node, values: Tensor) -> bool:
    found = node.meta.get("val")
    return isinstance(found, Tensor) and (found.dtype, found.shape) == (values.dtype, values.shape)


def _compute(module: fx.GraphModule, decoded: fx.Node, weight: QuantizedWeight) -> None:
    stored, columns = weight.elements, weight.columns
    dtype = DTYPES[stored.format.float_format.encoding.name]
    codes = new_constant(module, decoded, f"{weight.path}.weight_codes", stored.codes.view(dtype))
    scale = new_constant(module, decoded, f"{weight.path}.weight_scale", weight.scale)
    with module.graph.inserting_before(decoded):
        size = weight.group_size or columns
        made = module.graph.call_function(element_operator(), (codes, scale, size))
        if len(weight.shape) != 2:
            made = module.graph.call_function(torch.ops.aten.view.default, (made, list(weight.shape)))
    made.meta["val"] = decoded.meta.get("val")
    decoded.replace_all_uses_with(made)
