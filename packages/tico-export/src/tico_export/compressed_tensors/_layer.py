"""The tensors of a layer, by the names that compressed-tensors gives them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tico_config import FloatFormat, integer_format
from tico_export.checkpoints import words_of
from tico_export.compressed_tensors._scheme import Scheme, middle_of
from tico_export.source import Grid, QuantizedWeight


def layer_tensors(weight: QuantizedWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer, by their names in a checkpoint.

    Codes and zero points of integers are signed, ``-2 ** (bits - 1)`` being the first; packed ones are
    counted from it. Their scales are float32, as the layer has them, and there are no zero points where all
    are 0. Elements and their scales are the codes of the standards.
    """
    if isinstance(weight.dtype, FloatFormat):
        named = dict(_elements(weight, scheme))
    else:
        named = dict(_packed(weight, scheme) if scheme.is_packed else _plain(weight, scheme))
        named["weight_scale"] = weight.scale
    if weight.bias is not None:
        named["bias"] = weight.bias
    if weight.act_in is not None:
        named |= dict(_input(weight.act_in, scheme))
    yield from ((f"{weight.path}.{name}", tensor) for name, tensor in named.items())


def _packed(weight: QuantizedWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    first, bits = weight.dtype.qmin, weight.dtype.bits
    yield "weight_packed", words_of(weight.codes() - first, bits)
    yield "weight_shape", torch.tensor(weight.shape, dtype=torch.int64)
    if not scheme.weights.symmetric:
        # Those of a column of groups are packed together.
        yield "weight_zero_point", words_of((weight.zero_point - first).T, bits).T


def _plain(weight: QuantizedWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    middle = middle_of(integer_format(weight.dtype))
    yield "weight", (weight.codes() - middle).to(torch.int8)
    if not scheme.weights.symmetric:
        yield "weight_zero_point", (weight.zero_point - middle).to(torch.int8)


def _elements(weight: QuantizedWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    """Yield codes, two of 4 bits a byte or four of 6 bits in three, the first one lowest, and scales.

    The scale of a tensor stands as what scales are divided by.
    """
    stored = weight.elements
    if scheme.is_packed:
        yield "weight_packed", stored.codes
    else:
        yield "weight", stored.codes.view(torch.float8_e4m3fn)
    if stored.tensor_scale is None:
        scale = stored.stored_scale
        yield "weight_scale", scale[0] if scheme.weights.strategy == "tensor" else scale
    else:
        yield "weight_scale", stored.stored_scale.view(torch.float8_e4m3fn)
        yield "weight_global_scale", stored.tensor_scale.reciprocal().reshape(1)


def _input(grid: Grid, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    if grid.scale is not None and grid.zero_point is not None and scheme.inputs is not None:
        yield "input_scale", grid.scale.reshape(1)
        if not scheme.inputs.symmetric:
            middle = middle_of(integer_format(grid.dtype))
            yield "input_zero_point", (grid.zero_point - middle).reshape(1).to(torch.int8)
