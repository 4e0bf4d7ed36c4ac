"""The grid of a group of columns."""

from __future__ import annotations

import attrs
from torch import Tensor

from tico_config import DType, integer_format
from tico_observers import AffineParams


@attrs.frozen(eq=False)
class GroupGrid:
    """A grid for each row, or one for all: ``value = (code - zero_point) * scale - offset``.

    Where there is an `offset`, float32 as the scale is, codes are unsigned and zero points are 0.
    """

    params: AffineParams
    offset: Tensor | None = None

    @property
    def scale(self) -> Tensor:
        """The distance of two neighbouring values, float32."""
        return self.params.scale

    @property
    def zero_point(self) -> Tensor:
        """The code whose value is 0, where there is no offset, int32."""
        return self.params.zero_point

    @property
    def dtype(self) -> DType:
        """The format of the codes."""
        return integer_format(self.params.dtype)

    @property
    def zero(self) -> Tensor:
        """Where 0 lies, in steps from the smallest code."""
        if self.offset is not None:
            return self.offset / self.scale
        return (self.zero_point - self.dtype.qmin).to(self.scale.dtype)
