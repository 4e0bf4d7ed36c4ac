"""Cross-layer equalization on tensors (Nagel et al. 2019, arXiv 1906.04721, section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import attrs
import torch
from torch import Tensor

# Ranges that differ by less are as good as equal: a grid of 8 bits has steps of a 255th.
_STILL: Final = 1e-6


class ChannelMagnitudes:
    """The largest magnitudes of a weight between each output and input channel, and how they are scaled.

    `magnitudes` is (outputs, inputs) or, with `groups` of channels, (outputs, inputs of a group).
    """

    def __init__(self, magnitudes: Tensor, groups: int = 1) -> None:
        self._magnitudes = magnitudes.view(groups, -1, magnitudes.shape[1])
        self._outputs = torch.ones_like(self._magnitudes[:, :, :1], dtype=torch.float64)
        self._inputs = torch.ones_like(self._magnitudes[:, :1], dtype=torch.float64)

    def outputs(self) -> Tensor:
        """Return the range of each output channel, (outputs,)."""
        return ((self._magnitudes * self._inputs).amax(2, keepdim=True) * self._outputs).flatten()

    def inputs(self) -> Tensor:
        """Return the range of each input channel, (inputs,)."""
        return ((self._magnitudes * self._outputs).amax(1, keepdim=True) * self._inputs).flatten()

    def scale_outputs(self, scale: Tensor) -> None:
        """Multiply the output channels by `scale` (outputs,)."""
        self._outputs = self._outputs * scale.view_as(self._outputs)

    def scale_inputs(self, scale: Tensor) -> None:
        """Multiply the input channels by `scale` (inputs,)."""
        self._inputs = self._inputs * scale.view_as(self._inputs)


@attrs.frozen(eq=False)
class Reader:
    """A weight that reads the outputs of another one: `channels` (inputs,) has the number of each."""

    weight: ChannelMagnitudes
    channels: Tensor


def equalizing_scales(
    pairs: Sequence[tuple[ChannelMagnitudes, Sequence[Reader]]], sweeps: int
) -> list[Tensor]:
    """Return the scales of each pair, float64: output channels are divided by them, readers multiplied.

    ``s = sqrt(r₁ / r₂)``, equation 11, where r₁ is the range of an output channel and r₂ the largest range of
    what reads it. Both then have the range ``sqrt(r₁ r₂)``. The scale of a pair changes the ranges of its
    neighbours, so all pairs take turns until no scale changes, for at most `sweeps` rounds. A channel without
    any weight keeps the scale 1.

    >>> first, second = torch.tensor([[8.0], [1.0]]), torch.tensor([[2.0, 1.0]])
    >>> reader = Reader(ChannelMagnitudes(second), torch.arange(2))
    >>> [scale] = equalizing_scales([(ChannelMagnitudes(first), [reader])], sweeps=9)
    >>> scale.tolist(), reader.weight.inputs().tolist()
    ([2.0, 1.0], [4.0, 1.0])
    """
    scales = [torch.ones_like(weight.outputs()) for weight, _ in pairs]
    for _ in range(sweeps):
        moves = [_turn(weight, readers) for weight, readers in pairs]
        scales = [scale * move for scale, move in zip(scales, moves, strict=True)]
        if all(bool(((move - 1).abs() <= _STILL).all()) for move in moves):
            break
    return scales


def _turn(weight: ChannelMagnitudes, readers: Sequence[Reader]) -> Tensor:
    """Make the ranges of a pair equal, and return the scale that did."""
    before = weight.outputs()
    after = torch.zeros_like(before)
    for reader in readers:
        after.scatter_reduce_(0, reader.channels, reader.weight.inputs(), "amax")
    scale = torch.where((before > 0) & (after > 0), before.sqrt() / after.sqrt(), 1.0)
    weight.scale_outputs(1 / scale)
    for reader in readers:
        reader.weight.scale_inputs(scale[reader.channels])
    return scale
