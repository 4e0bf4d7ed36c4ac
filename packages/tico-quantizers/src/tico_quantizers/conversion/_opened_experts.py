"""Fused experts opened, so that each is a layer to quantize, and closed again with integers in them."""

from __future__ import annotations

import attrs
from torch import nn

from tico_modules import (
    Edit,
    ExpertWeights,
    FloatExpert,
    PackedWeight,
    QuantizedExperts,
    QuantizedLinear,
    carry_over,
    named_modules,
)
from tico_quantizers.calibration import ExpertLayers
from tico_quantizers.layers import ExpertLinear, fused_experts


def open_experts(model: nn.Module, edit: Edit, *, every_token: bool = False) -> nn.Module:
    """Give each expert in a parameter of `model` a layer; return the root.

    `every_token` lets each learn from all tokens, see `ExpertLayers`. `close_experts` ends that.
    """
    found = [(module, fused_experts(module)) for _, module in named_modules(model)]
    for module, about in found:
        if about is not None:
            model = edit.replace(model, module, ExpertLayers(module, about, every_token=every_token))
    return model


@attrs.frozen(eq=False)
class ClosedExperts:
    """The `root` of a model, its integer `experts`, and the identities of the `layers` that are gone."""

    root: nn.Module
    experts: tuple[QuantizedExperts, ...]
    layers: frozenset[int]


def close_experts(model: nn.Module, edit: Edit) -> ClosedExperts:
    """Put experts of integers, or the float ones where nothing was quantized, where experts were opened."""
    opened = [module for _, module in named_modules(model) if isinstance(module, ExpertLayers)]
    closed, layers = [], set()
    for module in opened:
        layers |= {id(layer) for _, layer in named_modules(module)}
        new = _closed(module)
        model = edit.replace(model, module, new)
        if isinstance(new, QuantizedExperts):
            closed.append(new)
    return ClosedExperts(model, tuple(closed), frozenset(layers))


def _closed(opened: ExpertLayers) -> nn.Module:
    weights = {}
    for name, transposed in opened.about.transposed.items():
        layers = opened.layers(name)
        if any(isinstance(layer, QuantizedLinear) for layer in layers):
            weights[name] = ExpertWeights(tuple(map(_weight_of, layers)), transposed)
    if not weights:
        return opened.original
    new = QuantizedExperts(opened.original, weights, choosing=opened.about.routing == "chosen")
    carry_over(opened, new)
    return new


def _weight_of(layer: nn.Module) -> PackedWeight | FloatExpert:
    match layer:
        case QuantizedLinear():
            return layer.packed
        case ExpertLinear():
            return FloatExpert(layer.weight.clone())
        case _:
            raise TypeError(type(layer))
