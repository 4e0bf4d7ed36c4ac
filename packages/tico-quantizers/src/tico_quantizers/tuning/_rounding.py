"""Codes and scales of a weight that steps of a descent can move, by derivatives straight through rounding.

The codes are q = clamp(round(p + V) + z) for offsets V from -1/2 to 1/2, and the weight is (q - z) s, as in
SignRound (Cheng et al. 2023, arXiv 2309.05516, section 3). There p is the float weight W / s; here a weight
starts from any codes c, such as those of GPTQ. So p is the point W / s where that rounds to c, and where it
does not, the point next to it that does. A scale s = s₀ eᵗ moves p along with W / s, and zero points stay.
"""

from __future__ import annotations

from typing import Final

import attrs
import torch
from torch import Tensor

from tico_modules import PackedWeight

# Weights that are further from 0 than so many steps are beyond every code.
_FURTHEST: Final = 2.0**16
_SMALLEST: Final = torch.finfo(torch.float32).tiny
_LARGEST: Final = torch.finfo(torch.float32).max


@attrs.frozen(eq=False, kw_only=True)
class LearnedRounding:
    """A weight on a grid, as a function of `offsets` and `logarithms`, leaves with derivatives.

    Where both are 0, it is `start`, bit for bit.

    Attributes:
        start: the weight that it starts from, without `group_index` and `super_block`.
        steps: p for the scales of `start`, (rows, columns).
        ratios: W / s for them, within reason, (rows, columns).
        offsets: V in units of `reach`, (rows, columns).
        logarithms: t in units of `stretch`, (rows, groups).
        reach: how far one step of a descent moves V, by the length of the step.
        stretch: the same of t.
    """

    start: PackedWeight
    steps: Tensor
    ratios: Tensor
    offsets: Tensor
    logarithms: Tensor
    reach: float = 1.0
    stretch: float = 0.1

    @classmethod
    def of(
        cls,
        weight: Tensor,
        start: PackedWeight,
        *,
        reach: float = 1.0,
        stretch: float = 0.1,
        edge: float = 0.5,
    ) -> LearnedRounding:
        """Return `start`, the codes that the float `weight` (rows, columns) has so far, ready to be moved."""
        scale = start.spread_groups(start.scale)
        ratios = (weight / scale).clamp(-_FURTHEST, _FURTHEST)
        middle = (start.integer_codes() - start.spread_groups(start.zero_point)).to(torch.float32)
        steps = ratios.clamp(middle - edge, middle + edge)
        return cls(
            start=start,
            steps=steps,
            ratios=ratios,
            offsets=torch.zeros_like(steps).requires_grad_(),
            logarithms=torch.zeros_like(start.scale).requires_grad_(),
            reach=reach,
            stretch=stretch,
        )

    def scale(self) -> Tensor:
        """Return s, (rows, groups)."""
        return (self.start.scale * (self.stretch * self.logarithms).exp()).clamp(_SMALLEST, _LARGEST)

    def weight(self) -> Tensor:
        """Return (q - z) s in the shape of the float weight, with derivatives."""
        values = self._codes() * self.start.spread_groups(self.scale())
        return values.view(self.start.shape)

    def _codes(self) -> Tensor:
        """Return q - z, with derivatives."""
        shrunk = torch.expm1(-self.stretch * self.logarithms)
        moved = torch.addcmul(self.steps, self.ratios, self.start.spread_groups(shrunk))
        moved = moved + (self.reach * self.offsets).clamp(-0.5, 0.5)
        rounded = moved + (moved.detach().round() - moved.detach())
        dtype, zero = self.start.dtype, self.start.spread_groups(self.start.zero_point)
        return rounded.clamp(dtype.qmin - zero, dtype.qmax - zero)

    @torch.no_grad()
    def packed(self) -> PackedWeight:
        """Return the weight as it is now, in integers: its ``dequantize()`` is `weight`, bit for bit."""
        zero, start = self.start.zero_point, self.start
        codes = self._codes().to(torch.int32) + start.spread_groups(zero)
        return PackedWeight.from_codes(
            codes,
            self.scale(),
            zero,
            dtype=start.dtype,
            shape=start.shape,
            group_size=start.group_size,
            float_dtype=start.float_dtype,
        )
