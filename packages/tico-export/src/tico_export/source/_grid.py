"""The grid of an activation, as numbers."""

from __future__ import annotations

import attrs
from torch import Tensor
from typing_extensions import Self

from tico_config import Granularity, GridFormat, NumberFormat, PerToken
from tico_modules import ActivationGrid, is_fixed


@attrs.frozen(eq=False, kw_only=True)
class Grid:
    """Codes of `dtype`, ``value = (code - zero_point) * scale``; elements have no zero point.

    `scale` (float32) and `zero_point` (int32) have the shape that `granularity` asks for. A grid that is
    computed for each token or block has none: both are None, and `symmetric` says how it is made.
    """

    dtype: NumberFormat
    granularity: Granularity
    symmetric: bool
    scale: Tensor | None
    zero_point: Tensor | None

    @property
    def is_dynamic(self) -> bool:
        """Whether each token, or each block of its values, has a grid of its own."""
        return not is_fixed(self.dtype, self.granularity)

    @property
    def format(self) -> GridFormat:
        """The codes, and what shares a scale."""
        return GridFormat(dtype=self.dtype, granularity=self.granularity, symmetric=self.symmetric)

    @property
    def label(self) -> str:
        """A short name, for example ``uint8 static`` or ``int8 per token``."""
        if not self.is_dynamic:
            return f"{self.dtype} static"
        return f"{self.dtype} per {'token' if isinstance(self.granularity, PerToken) else 'block'}"

    @classmethod
    def of(cls, module: ActivationGrid) -> Self:
        """Return the numbers of `module`."""
        dynamic = not is_fixed(module.dtype, module.granularity)
        return cls(
            dtype=module.dtype,
            granularity=module.granularity,
            symmetric=module.symmetric,
            scale=None if dynamic else module.scale,
            zero_point=None if dynamic else module.zero_point,
        )
