"""The grid of a group of columns."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import FloatFormat, NumberFormat
from tico_observers import AffineParams
from tico_observers.float_formats import encode_elements, round_elements_

LARGEST = torch.finfo(torch.float32).max


@attrs.frozen(eq=False)
class GroupGrid:
    """A grid for each row, or one for all: ``value = (code - zero_point) * scale - offset``.

    Where there is an `offset`, float32 as the scale is, codes are unsigned and zero points are 0. A grid of
    floating-point elements has neither: ``value = element(code) * scale``.
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
    def dtype(self) -> NumberFormat:
        """The format of the codes."""
        return self.params.dtype

    @property
    def zero(self) -> Tensor:
        """Where 0 lies, in steps from the smallest code."""
        if self.offset is not None:
            return self.offset / self.scale
        return (self.zero_point - self.dtype.qmin).to(self.scale.dtype)

    def take_nearest(self, columns: Tensor) -> Tensor:
        """Return the codes nearest to `columns` (columns, rows), int32, and leave the errors in these."""
        if isinstance(self.dtype, FloatFormat):
            element = self.dtype.encoding
            values = round_elements_(columns / self.scale, element)
            codes = encode_elements(values, element).to(torch.int32)
            columns.sub_(values.mul_(self.scale).clamp_(-LARGEST, LARGEST))
            return codes
        zero_point, offset = self.zero_point.to(torch.float32), self.offset
        above = columns if offset is None else columns + offset
        steps = (above / self.scale).round_().add_(zero_point).clamp_(self.dtype.qmin, self.dtype.qmax)
        codes = steps.to(torch.int32)
        values = steps.sub_(zero_point).mul_(self.scale)
        values = values if offset is None else values.sub_(offset)
        columns.sub_(values.clamp_(-LARGEST, LARGEST))
        return codes
