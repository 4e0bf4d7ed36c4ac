"""The tensors of a layer, by the names that the formats of GPTQ and AWQ give them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import torch
from torch import Tensor

from tico_export.checkpoints import words_of
from tico_export.source import QuantizedWeight, Source

_AWQ_ORDER: Final = (0, 2, 4, 6, 1, 3, 5, 7)
"""Which of eight output features stands in each place of a word, from the lowest bits up."""


def gptq_tensors(weight: QuantizedWeight, version: int) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer in the format of GPTQ.

    Codes are unsigned and packed along the input features: int32 (columns * bits / 32, rows). Zero points are
    packed along the output features, (groups, rows * bits / 32); version 1 has them less 1. Scales are
    float16 (groups, rows), and ``g_idx`` has the group of each column.
    """
    bits = weight.dtype.bits
    zero_points = (weight.zero_point - weight.dtype.qmin).T - (1 if version == 1 else 0)
    yield from _named(
        weight,
        qweight=words_of(weight.codes() - weight.dtype.qmin, bits).T.contiguous(),
        qzeros=words_of(zero_points, bits),
        g_idx=_groups(weight),
    )


def awq_tensors(weight: QuantizedWeight) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a layer in the format of AWQ, with the layout of its kernel ``gemm``.

    Codes and zero points of 4 bits are packed along the output features, eight in a word in an order of
    their own: int32 (columns, rows / 8) and (groups, rows / 8). Scales are float16 (groups, rows).
    """
    codes, zero_points = (each - weight.dtype.qmin for each in (weight.codes(), weight.zero_point))
    yield from _named(weight, qweight=_awq_words(codes), qzeros=_awq_words(zero_points))


def _named(weight: QuantizedWeight, **tensors: Tensor) -> Iterator[tuple[str, Tensor]]:
    tensors["scales"] = weight.scale.T.contiguous().half()
    if weight.bias is not None:
        tensors["bias"] = weight.bias.half()
    yield from ((f"{weight.path}.{name}", tensor) for name, tensor in tensors.items())


def _groups(weight: QuantizedWeight) -> Tensor:
    if weight.group_index is not None:
        return weight.group_index.to(torch.int32)
    size = weight.group_size or weight.columns
    return torch.arange(weight.columns, dtype=torch.int32) // size


def _awq_words(codes: Tensor) -> Tensor:
    """Return codes (rows, columns) packed along the rows, int32 (columns, rows / 8)."""
    rows, columns = codes.shape
    eights = codes.T.reshape(columns, rows // len(_AWQ_ORDER), len(_AWQ_ORDER))
    return words_of(eights[..., list(_AWQ_ORDER)].reshape(columns, rows), 4)


def rounding_notes(source: Source) -> Iterator[str]:
    """Yield a sentence on what float16 has rounded, if it has anything."""
    moved = [
        path
        for path, each in source.weights.items()
        if not torch.equal(each.scale.half().float(), each.scale)
    ]
    if moved:
        share = f"{len(moved)} of {len(source.weights)} layers"
        yield f"the scales of {share} are rounded to float16, as the format has them"
