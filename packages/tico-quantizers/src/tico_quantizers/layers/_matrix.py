"""Layers with a weight, seen as a matrix that multiplies rows of inputs."""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor, nn

from tico_modules import (
    ConvSettings,
    ConvTransposeSettings,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    TransposedLinear,
)

FloatConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d
FloatTransposed: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
IntegerConv: TypeAlias = QuantizedConv1d | QuantizedConv2d | QuantizedConv3d
IntegerTransposed: TypeAlias = QuantizedConvTranspose1d | QuantizedConvTranspose2d | QuantizedConvTranspose3d
FloatLayer: TypeAlias = nn.Linear | TransposedLinear | FloatConv | FloatTransposed
IntegerLayer: TypeAlias = QuantizedLinear | IntegerConv | IntegerTransposed
Layer: TypeAlias = FloatLayer | IntegerLayer


def as_layer(module: nn.Module) -> Layer | None:
    """Return `module` if it is a layer whose weight can be seen as a matrix, else None."""
    return module if isinstance(module, Layer) else None


def stored(layer: Layer) -> list[Tensor]:
    """Return the tensors that the weight is made of."""
    return list(layer.packed.buffers()) if isinstance(layer, IntegerLayer) else [layer.weight]


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
    return 1 if reads_rows(layer) else conv_settings(layer).groups


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


def conv_settings(layer: Layer) -> ConvSettings | ConvTransposeSettings:
    """Return how a convolution moves its kernel.

    Raises:
        TypeError: `layer` is none.
    """
    match layer:
        case nn.Conv1d() | nn.Conv2d() | nn.Conv3d():
            return ConvSettings.of(layer)
        case nn.ConvTranspose1d() | nn.ConvTranspose2d() | nn.ConvTranspose3d():
            return ConvTransposeSettings.of(layer)
        case nn.Module(conv=ConvSettings() | ConvTransposeSettings() as conv):
            return conv
        case _:
            raise TypeError(type(layer))
