"""The tensors of a layer, by the names that compressed-tensors gives them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tico_export.checkpoints import words_of
from tico_export.compressed_tensors._scheme import Scheme, middle_of
from tico_export.source import Grid, IntegerWeight


def layer_tensors(weight: IntegerWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer, by their names in a checkpoint.

    Codes and zero points are signed, ``-2 ** (bits - 1)`` being the first; packed ones are counted from it.
    Scales are float32, as the layer has them. There are no zero points where all are 0.
    """
    named = dict(_packed(weight, scheme) if scheme.is_packed else _plain(weight, scheme))
    named["weight_scale"] = weight.scale
    if weight.bias is not None:
        named["bias"] = weight.bias
    if weight.act_in is not None:
        named |= dict(_input(weight.act_in, scheme))
    yield from ((f"{weight.path}.{name}", tensor) for name, tensor in named.items())


def _packed(weight: IntegerWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    first = weight.dtype.qmin
    yield "weight_packed", words_of(weight.codes() - first, scheme.bits)
    yield "weight_shape", torch.tensor(weight.shape, dtype=torch.int64)
    if not scheme.symmetric:
        # Those of a column of groups are packed together.
        yield "weight_zero_point", words_of((weight.zero_point - first).T, scheme.bits).T


def _plain(weight: IntegerWeight, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    middle = middle_of(weight.dtype)
    yield "weight", (weight.codes() - middle).to(torch.int8)
    if not scheme.symmetric:
        yield "weight_zero_point", (weight.zero_point - middle).to(torch.int8)


def _input(grid: Grid, scheme: Scheme) -> Iterator[tuple[str, Tensor]]:
    if grid.scale is not None and grid.zero_point is not None and scheme.inputs is not None:
        yield "input_scale", grid.scale.reshape(1)
        if not scheme.inputs.symmetric:
            yield "input_zero_point", (grid.zero_point - middle_of(grid.dtype)).reshape(1).to(torch.int8)
