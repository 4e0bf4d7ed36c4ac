"""The windows of its input that a convolution multiplies its kernel by, spelled out as rows."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from tico_modules import ConvSettings, ConvTransposeSettings


def conv_rows(x: Tensor, kernel: tuple[int, ...], conv: ConvSettings) -> Iterator[Tensor]:
    """Yield, sample by sample, the rows (groups, positions, in / groups * taps) for an input `x`.

    A row's product with a row of the weight, seen as (out, in / groups * taps), is one element of the output.
    """
    for sample in _samples(x, kernel):
        yield _windows(conv.pad(sample), kernel, conv.stride, conv.dilation, conv.groups)


def transposed_rows(
    x: Tensor, kernel: tuple[int, ...], conv: ConvTransposeSettings, added: tuple[int, ...]
) -> Iterator[Tensor]:
    """Yield the same for a transposed convolution whose output has `added` more elements an axis.

    It is a convolution of stride 1, with its kernel turned around, of the input with zeros in between.
    """
    pads = [_pads(*axis) for axis in zip(kernel, conv.dilation, conv.padding, added, strict=True)]
    around = [pad for axis in reversed(pads) for pad in axis]
    turned = tuple(range(-len(kernel), 0))
    for sample in _samples(x, kernel):
        spread = F.pad(_spread(sample, conv.stride), around)
        rows = _windows(spread, kernel, (1,) * len(kernel), conv.dilation, conv.groups)
        yield rows.view(*rows.shape[:2], -1, *kernel).flip(turned).reshape(rows.shape)


def _pads(taps: int, dilation: int, cut: int, added: int) -> tuple[int, int]:
    reach = dilation * (taps - 1) - cut
    return reach, reach + added


def _samples(x: Tensor, kernel: tuple[int, ...]) -> Iterator[Tensor]:
    # One by one: the windows of a whole batch would take its memory as many times as a kernel has taps.
    batch = x if x.ndim == len(kernel) + 2 else x.unsqueeze(0)
    return (batch[index : index + 1] for index in range(len(batch)))


def _spread(x: Tensor, stride: tuple[int, ...]) -> Tensor:
    """Return `x` (1, channels, *size) with ``stride - 1`` zeros between neighbours."""
    sizes = [(size - 1) * step + 1 for size, step in zip(x.shape[2:], stride, strict=True)]
    spread = x.new_zeros(*x.shape[:2], *sizes)
    places = spread
    for axis, step in enumerate(stride, start=2):
        places = places[(slice(None),) * axis + (slice(None, None, step),)]
    places.copy_(x)
    return spread


def _windows(
    x: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...], dilation: tuple[int, ...], groups: int
) -> Tensor:
    """Return the windows of `x` (1, channels, *size), which is padded already."""
    axes = list(zip(x.shape[2:], kernel, stride, dilation, strict=True))
    places = [max((size - (taps - 1) * apart - 1) // step + 1, 0) for size, taps, step, apart in axes]
    steps = [x.stride(axis + 2) * step for axis, step in enumerate(stride)]
    taps_apart = [x.stride(axis + 2) * apart for axis, apart in enumerate(dilation)]
    width = x.shape[1] // groups
    shape = (groups, *places, width, *kernel)
    strides = (width * x.stride(1), *steps, x.stride(1), *taps_apart)
    windows = torch.as_strided(x, shape, strides, x.storage_offset())
    return windows.reshape(groups, -1, width * torch.Size(kernel).numel())
