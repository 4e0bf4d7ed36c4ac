"""Codes and scales of a weight that steps of a descent can move, by derivatives straight through rounding.

With offsets V from -1/2 to 1/2, the codes are q = clamp(round(p + V) + z), and the weight is (q - z) s: as in
SignRound (Cheng et al. 2023, arXiv 2309.05516, section 3), but for two things. There p is W / s for the float
weight W. Here codes start from any c, such as those of GPTQ, which are often not the nearest: p is the point
nearest to W / s that is at most `EDGE` from c - z. And p stays where the scale s = s₀ eᵗ moves, so that the
derivative by t is exact as long as the codes stay. Zero points stay.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor

from tico_modules import PackedWeight

EDGE: Final = 0.25
"""How far a weight may be from its code at the start: less than 1/2, or one step would undo what GPTQ did."""

# How far t moves when V moves by 1. Both are moved by steps of one length.
_STRETCH: Final = 0.1
_SMALLEST: Final = torch.finfo(torch.float32).tiny
_LARGEST: Final = torch.finfo(torch.float32).max


@attrs.frozen(eq=False, kw_only=True)
class LearnedRounding:
    """A weight on a grid, as a function of `offsets` and `stretches`, leaves with derivatives.

    Where both are 0, it is `start`, bit for bit.

    Attributes:
        start: the weight that it starts from.
        points: p, (rows, columns).
        offsets: V, (rows, columns).
        stretches: 10 t, (rows, groups), so that steps of one length fit both.
    """

    start: PackedWeight
    points: Tensor
    offsets: Tensor
    stretches: Tensor

    @classmethod
    def of(cls, weight: Tensor, start: PackedWeight) -> LearnedRounding:
        """Return `start`, whose codes the float `weight` (rows, columns) has so far, ready to be moved.

        The grids of `start` share no scale (`super_block`), and its groups are runs of columns.

        >>> from tico_config import DType
        >>> weight = torch.tensor([[0.0, 1.1, 3.0]])
        >>> start = PackedWeight.round_to_nearest(weight, DType.uint(2), symmetric=False, group_size=None)
        >>> rounding = LearnedRounding.of(weight, start)
        >>> with torch.no_grad():
        ...     rounding.offsets[0, 1] = 0.45
        >>> rounding.packed().dequantize().tolist()
        [[0.0, 2.0, 3.0]]
        """
        middle = (start.integer_codes() - start.spread_groups(start.zero_point)).to(torch.float32)
        points = (weight / start.spread_groups(start.scale)).clamp(middle - EDGE, middle + EDGE)
        return cls(
            start=start,
            points=points,
            offsets=torch.zeros_like(points).requires_grad_(),
            stretches=torch.zeros_like(start.scale).requires_grad_(),
        )

    def scale(self) -> Tensor:
        """Return s, (rows, groups)."""
        return (self.start.scale * (_STRETCH * self.stretches).exp()).clamp(_SMALLEST, _LARGEST)

    def weight(self) -> Tensor:
        """Return (q - z) s in the shape of the float weight, with derivatives."""
        values = self._distances() * self.start.spread_groups(self.scale())
        return values.clamp(-_LARGEST, _LARGEST).view(self.start.shape)

    def _distances(self) -> Tensor:
        """Return q - z, with derivatives."""
        moved = self.points + self.offsets.clamp(-0.5, 0.5)
        # The difference is exact, so that the sum is, too.
        rounded = moved + (moved.detach().round() - moved.detach())
        dtype, zero = self.start.dtype, self.start.spread_groups(self.start.zero_point)
        return rounded.clamp(dtype.qmin - zero, dtype.qmax - zero)

    @torch.no_grad()
    def packed(self) -> PackedWeight:
        """Return the weight as it is now, in integers: its ``dequantize()`` is `weight`, bit for bit."""
        zero, start = self.start.zero_point, self.start
        return PackedWeight.from_codes(
            self._distances().to(torch.int32) + start.spread_groups(zero),
            self.scale(),
            zero,
            dtype=start.dtype,
            shape=start.shape,
            group_size=start.group_size,
            float_dtype=start.float_dtype,
        )
