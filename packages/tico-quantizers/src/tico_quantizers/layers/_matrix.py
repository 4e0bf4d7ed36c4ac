"""Layers with a weight, seen as a matrix that multiplies rows of inputs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import UninitializedParameter
from torch.nn.utils import parametrize

from tico_config import Found, Problem, UnsupportedError
from tico_modules import (
    ConvSettings,
    ConvTransposeSettings,
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    QuantizedModule,
    TransposedLinear,
    carry_over,
    copy_bias,
    parameter,
)
from tico_quantizers.layers._windows import conv_rows, transposed_rows

FloatConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
FloatTransposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
IntegerConv: TypeAlias = QuantizedConv1d | QuantizedConv2d | QuantizedConv3d
IntegerTransposed: TypeAlias = QuantizedConvTranspose1d | QuantizedConvTranspose2d | QuantizedConvTranspose3d
FloatLayer: TypeAlias = nn.Linear | TransposedLinear | FloatConv | FloatTransposed
IntegerLayer: TypeAlias = QuantizedLinear | IntegerConv | IntegerTransposed
Layer: TypeAlias = FloatLayer | IntegerLayer

_OWN_FORWARDS = (
    nn.Linear,
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d),
    *(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d),
)


def as_layer(module: nn.Module) -> Layer | None:
    """Return `module` if it is a layer whose weight can be seen as a matrix, else None."""
    return module if isinstance(module, Layer) else None


def reason_against(module: Layer, *, inside_attention: bool = False) -> str | None:
    """Return why the weight of `module` cannot be quantized by way of its inputs, or None."""
    if isinstance(module, IntegerLayer):
        return None
    if inside_attention:
        return "nn.MultiheadAttention reads its weight without calling it"
    known = isinstance(module, TransposedLinear) or type(module).forward in [
        kind.forward for kind in _OWN_FORWARDS
    ]
    if not known or "forward" in vars(module):
        return f"this {type(module).__name__} has a forward of its own"
    return _weight_reason(module)


def _weight_reason(module: FloatLayer) -> str | None:
    weight = parameter(module, "weight")
    if parametrize.is_parametrized(module) or weight is None:
        return "its weight is computed from other parameters"
    if isinstance(weight, UninitializedParameter):
        return "it has no weight before data have passed through it"
    if not weight.is_floating_point():
        return f"its weight is {weight.dtype}"
    return None if weight.numel() else "its weight is empty"


def matrix(layer: Layer) -> Tensor:
    """Return the weight as float32 (rows, columns), a row for each output channel."""
    return _by_output(layer).detach().flatten(1).to(torch.float32)


def _by_output(layer: Layer) -> Tensor:
    match layer:
        case nn.Linear() | nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return layer.weight
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return ConvTransposeSettings.of(layer).swap_channels(layer.weight)
        case TransposedLinear():
            return layer.weight.T
        case _:
            return layer.packed.dequantize()


def shape(layer: Layer) -> tuple[int, ...]:
    """Return the shape of the weight with the output channels in front, as `PackedWeight` has it."""
    return layer.packed.shape if isinstance(layer, IntegerLayer) else tuple(_by_output(layer).shape)


def columns(layer: Layer) -> int:
    """Return the number of columns of the weight's matrix."""
    return int(torch.Size(shape(layer)[1:]).numel())


def groups(layer: Layer) -> int:
    """Return how many runs of equally many rows of the weight's matrix read inputs of their own."""
    return 1 if reads_rows(layer) else _conv_settings(layer).groups


def input_rows(layer: Layer, x: Tensor, added: tuple[int, ...] | None = None) -> Iterator[Tensor]:
    """Yield the rows (groups, rows, columns) that the weight's matrix multiplies for the input `x`.

    `added` is what `output_added` says of the call.
    """
    if isinstance(layer, IntegerLayer) and layer.act_in is not None:
        x = layer.act_in(x)
    if reads_rows(layer):
        return iter((x.reshape(1, -1, x.shape[-1]) if x.ndim else x,))
    conv, kernel = _conv_settings(layer), shape(layer)[2:]
    if isinstance(conv, ConvSettings):
        return conv_rows(x, kernel, conv)
    return transposed_rows(x, kernel, conv, conv.output_padding if added is None else added)


def feature_axis(layer: Layer) -> int:
    """Return the axis of the channels in the inputs and outputs of `layer`, counted from the last."""
    return -1 if reads_rows(layer) else 1 - len(shape(layer))


def weight_axes(layer: FloatLayer) -> tuple[int, int]:
    """Return the axes of the output and of the input channels in the weight of `layer`."""
    swapped = isinstance(layer, TransposedLinear | FloatTransposed)
    return (1, 0) if swapped else (0, 1)


def reads_rows(layer: Layer) -> bool:
    """Return whether the rows of a layer are the last axis of its input, as those of linear layers are."""
    return isinstance(layer, nn.Linear | TransposedLinear | QuantizedLinear)


def _conv_settings(layer: Layer) -> ConvSettings | ConvTransposeSettings:
    match layer:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return ConvSettings.of(layer)
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return ConvTransposeSettings.of(layer)
        case nn.Module(conv=ConvSettings() | ConvTransposeSettings() as conv):
            return conv
        case _:
            raise TypeError(type(layer))


def input_tensor(path: str, args: tuple[object, ...], kwargs: dict[str, object]) -> Tensor:
    """Return the one input of a call of a layer, positional or by keyword.

    Raises:
        UnsupportedError: there is none.
    """
    x = args[0] if args else kwargs.get("input", next(iter(kwargs.values()), None))
    if not isinstance(x, Tensor):
        found = Found(type(x).__name__)
        raise UnsupportedError(Problem(module=path, field="input", value=found, expected="a tensor"))
    return x


def output_added(
    layer: Layer, x: Tensor, args: tuple[object, ...], kwargs: dict[str, object]
) -> tuple[int, ...] | None:
    """Return the output padding that a call of a transposed convolution asks for by its `output_size`."""
    wanted = args[1] if len(args) > 1 else kwargs.get("output_size")
    conv = _conv_settings(layer) if wanted is not None and not reads_rows(layer) else None
    if not isinstance(conv, ConvTransposeSettings) or not isinstance(wanted, list | tuple):
        return None
    axes = len(conv.stride)
    return conv.find_output_padding(x.shape[-axes:], shape(layer)[2:], wanted[-axes:])


def with_weight(layer: Layer, packed: PackedWeight) -> QuantizedModule:
    """Return the integer layer that stands in for `layer` with another weight."""
    new = _integer_layer(layer, packed)
    carry_over(layer, new)
    return new


_CONVS = {1: QuantizedConv1d, 2: QuantizedConv2d, 3: QuantizedConv3d}
_TRANSPOSED = {1: QuantizedConvTranspose1d, 2: QuantizedConvTranspose2d, 3: QuantizedConvTranspose3d}


def _integer_layer(layer: Layer, packed: PackedWeight) -> QuantizedModule:
    if isinstance(layer, IntegerLayer):
        old = layer.parts
        return layer.with_parts(Parts(packed=packed, bias=old.bias, act_in=old.act_in, act_out=old.act_out))
    parts = Parts(packed=packed, bias=copy_bias(layer))
    if reads_rows(layer):
        return QuantizedLinear(parts)
    conv, axes = _conv_settings(layer), len(shape(layer)) - 2
    return _CONVS[axes](parts, conv) if isinstance(conv, ConvSettings) else _TRANSPOSED[axes](parts, conv)
