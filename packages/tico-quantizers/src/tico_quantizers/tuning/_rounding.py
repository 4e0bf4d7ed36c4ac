"""Codes and scales of a weight that steps of a descent can move, by derivatives straight through rounding.

With offsets V from -1/2 to 1/2, integer codes are q = clamp(round(p + V) + z), and the weight is (q - z) s:
as in SignRound (Cheng et al. 2023, arXiv 2309.05516, section 3), but for two things. There p is W / s for the
float weight W. Here codes start from any c, such as those of GPTQ, which are often not the nearest: p is the
point nearest to W / s that is at most `EDGE` from c - z. And p stays where the scale s = s₀ eᵗ moves, so that
the derivative by t is exact as long as the codes stay. Zero points stay.

Floating-point elements have no zero point, and are not equally far apart: the weight is e s, and e the
element nearest to p + V d, where d is how far the element at the start is from the next one on the side of V,
and p is at most `EDGE` d from it. Scales of blocks have grids of their own, and stay; those in float32 move.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor

from tico_config import FloatFormat
from tico_modules import FloatWeight, PackedWeight
from tico_observers.float_formats import (
    decode_elements,
    element_gaps,
    encode_elements,
    round_elements,
)

EDGE: Final = 0.25
"""How many steps a weight may be from its code at first: less than 1/2, or one would undo what GPTQ did."""

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
        gaps: d below and above, of elements, (rows, columns) each; None for integers, whose steps are 1.
        offsets: V, (rows, columns).
        stretches: 10 t, (rows, groups), so that steps of one length fit both.
    """

    start: PackedWeight
    points: Tensor
    gaps: tuple[Tensor, Tensor] | None
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
        dtype, codes = start.dtype, start.integer_codes()
        if isinstance(dtype, FloatFormat):
            middle = decode_elements(codes, dtype.encoding)
            gaps = element_gaps(middle, dtype.encoding)
            low, high = middle - EDGE * gaps[0], middle + EDGE * gaps[1]
        else:
            middle = (codes - start.spread_groups(start.zero_point)).to(torch.float32)
            gaps, low, high = None, middle - EDGE, middle + EDGE
        points = (weight / start.spread_groups(start.scale)).clamp(low, high)
        return cls(
            start=start,
            points=points,
            gaps=gaps,
            offsets=torch.zeros_like(points).requires_grad_(),
            stretches=torch.zeros_like(start.scale).requires_grad_(),
        )

    def scale(self) -> Tensor:
        """Return s, (rows, groups)."""
        dtype = self.start.dtype
        if isinstance(dtype, FloatFormat) and dtype.scale_format != "float32":
            return self.start.scale
        return (self.start.scale * (_STRETCH * self.stretches).exp()).clamp(_SMALLEST, _LARGEST)

    def weight(self) -> Tensor:
        """Return (q - z) s, or e s, in the shape of the float weight, with derivatives."""
        values = self._distances() * self.start.spread_groups(self.scale())
        return values.clamp(-_LARGEST, _LARGEST).view(self.start.shape)

    def _distances(self) -> Tensor:
        """Return q - z, or e, with derivatives."""
        moved, dtype = self.points + self._moves(), self.start.dtype
        at = moved.detach()
        nearest = round_elements(at, dtype.encoding) if isinstance(dtype, FloatFormat) else at.round()
        # The difference is exact, so that the sum is, too.
        rounded = moved + (nearest - at)
        if isinstance(dtype, FloatFormat):
            return rounded
        zero = self.start.spread_groups(self.start.zero_point)
        return rounded.clamp(dtype.qmin - zero, dtype.qmax - zero)

    def _moves(self) -> Tensor:
        """Return V, or V d."""
        offsets = self.offsets.clamp(-0.5, 0.5)
        if self.gaps is None:
            return offsets
        below, above = self.gaps
        return offsets * torch.where(offsets.detach() < 0, below, above)

    @torch.no_grad()
    def packed(self) -> PackedWeight:
        """Return the weight as it is now, in codes: its ``dequantize()`` is `weight`, bit for bit."""
        start = self.start
        return PackedWeight.from_codes(
            self._codes(),
            self.scale(),
            start.zero_point,
            dtype=start.dtype,
            shape=start.shape,
            group_size=start.group_size,
            tensor_scale=start.tensor_scale if isinstance(start, FloatWeight) else None,
            float_dtype=start.float_dtype,
        )

    def _codes(self) -> Tensor:
        """Return q, or the codes of e, int32."""
        distances, dtype = self._distances(), self.start.dtype
        if isinstance(dtype, FloatFormat):
            return encode_elements(distances, dtype.encoding).to(torch.int32)
        return distances.to(torch.int32) + self.start.spread_groups(self.start.zero_point)
