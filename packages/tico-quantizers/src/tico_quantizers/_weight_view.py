"""Layers with a weight, seen as a matrix that multiplies rows of inputs."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import UninitializedParameter
from torch.nn import functional as F
from torch.nn.utils import parametrize

from tico_config import Found, Problem, UnsupportedError
from tico_quantizers._module_tree import named_modules, parameter
from tico_quantizers._packed_weight import PackedWeight
from tico_quantizers._quantized_conv import ConvSettings, QuantizedConv1d, QuantizedConv2d
from tico_quantizers._quantized_linear import QuantizedLinear, detached_bias
from tico_quantizers._quantized_module import Parts
from tico_quantizers._stand_in import stand_in

FloatLayer: TypeAlias = nn.Linear | nn.Conv1d | nn.Conv2d
IntegerLayer: TypeAlias = QuantizedLinear | QuantizedConv1d | QuantizedConv2d
Layer: TypeAlias = FloatLayer | IntegerLayer


def as_layer(module: nn.Module) -> Layer | None:
    """Return `module` if it is a layer whose weight can be seen as a matrix, else None."""
    return module if isinstance(module, Layer) else None


def reason_against(module: Layer, *, inside_attention: bool = False) -> str | None:
    """Return why the weight of `module` cannot be quantized by way of its inputs, or None."""
    if isinstance(module, IntegerLayer):
        return _conv_reason(module.conv.groups) if not isinstance(module, QuantizedLinear) else None
    if inside_attention:
        return "nn.MultiheadAttention reads its weight without calling it"
    own_forward = all(type(module).forward is not kind.forward for kind in (nn.Linear, nn.Conv1d, nn.Conv2d))
    if own_forward or "forward" in vars(module):
        return f"this {type(module).__name__} has a forward of its own"
    conv = None if isinstance(module, nn.Linear) else _conv_reason(module.groups)
    return _weight_reason(module) or conv


def _weight_reason(module: FloatLayer) -> str | None:
    weight = parameter(module, "weight")
    if parametrize.is_parametrized(module) or weight is None:
        return "its weight is computed from other parameters"
    if isinstance(weight, UninitializedParameter):
        return "it has no weight before data have passed through it"
    return None if weight.numel() else "its weight is empty"


def _conv_reason(groups: int) -> str | None:
    return None if groups == 1 else f"convolutions with groups={groups} are left alone"


def matrix(layer: Layer) -> Tensor:
    """Return the weight as float32 (rows, columns)."""
    weight = layer.packed.dequantize() if isinstance(layer, IntegerLayer) else layer.weight
    return weight.detach().flatten(1).to(torch.float32)


def shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape of the weight."""
    return layer.packed.shape if isinstance(layer, IntegerLayer) else tuple(layer.weight.shape)


def columns(layer: Layer) -> int:
    """Return the number of columns of the weight's matrix."""
    return int(torch.Size(shape(layer)[1:]).numel())


def input_rows(layer: Layer, x: Tensor) -> Tensor:
    """Return the rows (..., columns) that the weight's matrix multiplies for the input `x`."""
    if isinstance(layer, IntegerLayer) and layer.act_in is not None:
        x = layer.act_in(x)
    if isinstance(layer, nn.Linear | QuantizedLinear):
        return x
    conv = layer.conv if isinstance(layer, IntegerLayer) else ConvSettings.of(layer)
    kernel = shape(layer)[2:]
    padded = conv.padded(x if x.ndim == len(kernel) + 2 else x.unsqueeze(0))
    if len(kernel) == 1:
        padded = padded.unsqueeze(-2)
        windows = F.unfold(padded, (1, *kernel), (1, *conv.dilation), 0, (1, *conv.stride))
    else:
        windows = F.unfold(padded, kernel, conv.dilation, 0, conv.stride)
    return windows.transpose(1, 2)


def input_tensor(path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    """Return the one input of a call of a layer, positional or by keyword.

    Raises:
        UnsupportedError: there is none.
    """
    x = args[0] if args else next(iter(kwargs.values()), None)
    if not isinstance(x, Tensor):
        found = Found(type(x).__name__)
        raise UnsupportedError(Problem(module=path, field="input", value=found, expected="a tensor"))
    return x


def with_weight(layer: Layer, packed: PackedWeight) -> IntegerLayer:
    """Return the integer layer that stands in for `layer` with another weight."""
    new = _integer_layer(layer, packed)
    stand_in(layer, new)
    return new


def _integer_layer(layer: Layer, packed: PackedWeight) -> IntegerLayer:
    match layer:
        case QuantizedLinear() | QuantizedConv1d() | QuantizedConv2d():
            old = layer.parts
            parts = Parts(packed=packed, bias=old.bias, act_in=old.act_in, act_out=old.act_out)
            return layer.with_parts(parts)
        case nn.Linear():
            return QuantizedLinear(Parts(packed=packed, bias=detached_bias(layer)))
        case nn.Conv1d():
            return QuantizedConv1d(Parts(packed=packed, bias=detached_bias(layer)), ConvSettings.of(layer))
        case nn.Conv2d():
            return QuantizedConv2d(Parts(packed=packed, bias=detached_bias(layer)), ConvSettings.of(layer))


def tied_paths(model: nn.Module) -> dict[str, str]:
    """Return, for each module whose weight another module also holds, the path of that other module."""
    first: dict[int, str] = {}
    tied: dict[str, str] = {}
    for path, module in named_modules(model):
        weight = parameter(module, "weight")
        if weight is None:
            continue
        if id(weight) in first:
            tied[path] = first[id(weight)]
            tied.setdefault(first[id(weight)], path)
        first.setdefault(id(weight), path)
    return tied
