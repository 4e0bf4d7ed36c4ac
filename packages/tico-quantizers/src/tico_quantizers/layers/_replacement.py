"""Integer layers in the place of those that an algorithm has found codes for."""

from __future__ import annotations

import attrs

from tico_modules import (
    ConvSettings,
    LayerReport,
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
    carry_over,
    copy_bias,
)
from tico_quantizers.layers._matrix import IntegerLayer, Layer, conv_settings, reads_rows, shape


@attrs.frozen(eq=False)
class QuantizedWeight:
    """The codes of a layer's weight, and the line of the report about them."""

    packed: PackedWeight
    line: LayerReport


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
    conv, axes = conv_settings(layer), len(shape(layer)) - 2
    return _CONVS[axes](parts, conv) if isinstance(conv, ConvSettings) else _TRANSPOSED[axes](parts, conv)
