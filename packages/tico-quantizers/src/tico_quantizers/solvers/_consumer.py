"""A layer, as the algorithms that scale channels see it."""

from __future__ import annotations

import attrs
from torch import Tensor


@attrs.frozen(eq=False, kw_only=True)
class ConsumerWeight:
    """A layer that reads channels: its weight, and what it has read.

    Attributes:
        weight: float32 (rows, columns).
        channels: int64 (columns,), the channel that each column multiplies.
        gram: float32 (columns, columns), the mean of xᵀx over the rows that the layer has read.
    """

    weight: Tensor
    channels: Tensor
    gram: Tensor
