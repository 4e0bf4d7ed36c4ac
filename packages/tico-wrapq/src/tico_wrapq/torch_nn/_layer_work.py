"""How many multiply-accumulates a call of a layer takes."""

from __future__ import annotations

import math

from torch import Tensor, nn

from tico_modules import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    QuantizedModule,
    TransposedLinear,
    parameter,
)

_INTEGER_CONVOLUTIONS = (QuantizedConv1d, QuantizedConv2d, QuantizedConv3d)
_INTEGER_TRANSPOSED = (QuantizedConvTranspose1d, QuantizedConvTranspose2d, QuantizedConvTranspose3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_FLOAT_LAYERS = (nn.Linear, TransposedLinear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)
_INTEGER_LAYERS = (QuantizedLinear, *_INTEGER_CONVOLUTIONS, *_INTEGER_TRANSPOSED)


def multiplies(layer: nn.Module) -> bool:
    """Return whether `layer` is one whose multiply-accumulates `layer_work` knows."""
    return isinstance(layer, (*_FLOAT_LAYERS, *_INTEGER_LAYERS))


def layer_work(layer: nn.Module, x: object, output: object) -> int:
    """Return the multiply-accumulates of one call of a linear layer or convolution; 0 for any other module.

    >>> import torch
    >>> layer = nn.Conv1d(4, 6, 3)
    >>> x = torch.zeros(2, 4, 10)
    >>> layer_work(layer, x, layer(x))
    1152
    """
    shape = _weight_shape(layer)
    if not multiplies(layer) or not shape:
        return 0
    # Each output of a convolution takes the weights of one row; each input of a transposed one meets them.
    tensor = x if isinstance(layer, (*_TRANSPOSED, *_INTEGER_TRANSPOSED)) else output
    return tensor.numel() * math.prod(shape[1:]) if isinstance(tensor, Tensor) else 0


def _weight_shape(layer: nn.Module) -> tuple[int, ...]:
    weight = parameter(layer, "weight")
    if isinstance(layer, QuantizedModule):
        return layer.weight_shape
    if isinstance(layer, TransposedLinear) and weight is not None:
        weight = weight.T
    return () if weight is None else tuple(weight.shape)
