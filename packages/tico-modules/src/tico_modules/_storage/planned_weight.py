"""A packed weight whose codes are still to be found: its format, and how much memory it will take."""

from __future__ import annotations

from typing import final

import torch

from tico_config import FloatFormat, GridFormat, integer_format
from tico_modules._storage.float_weight import FloatWeight
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._storage.weight_format import WeightFormat


@final
class PlannedWeight(PackedWeight):
    """A weight of the format `form` whose buffers are on the meta device.

    Args:
        form: the format of the codes.
        symmetric: whether all zero points will be in the middle.
        indexed: whether each column will name its group.

    >>> from tico_config import INT8
    >>> PlannedWeight(WeightFormat(dtype=INT8, shape=(2, 64)), symmetric=True).bytes
    144
    """

    def __init__(
        self,
        form: WeightFormat,
        *,
        symmetric: bool,
        indexed: bool = False,
    ) -> None:
        grid = (form.rows, form.groups)
        scale = torch.empty(grid, device="meta")
        super().__init__(
            torch.empty((form.rows, form.stored_columns), dtype=form.stored_dtype, device="meta"),
            scale,
            torch.empty(grid, dtype=torch.int32, device="meta"),
            dtype=integer_format(form.dtype),
            shape=form.shape,
            group_size=form.group_size,
            group_index=torch.empty(form.columns, dtype=torch.int32, device="meta") if indexed else None,
            offset=torch.empty_like(scale) if form.has_offset else None,
            super_block=form.super_block,
        )
        self._symmetric = symmetric

    @classmethod
    def of(cls, shape: tuple[int, ...], grid: GridFormat) -> PackedWeight:
        """Return a weight of `shape` with codes of the format `grid`.

        >>> from tico_config import INT4, PerGroup
        >>> grid = GridFormat(dtype=INT4, granularity=PerGroup(size=32), symmetric=True)
        >>> PlannedWeight.of((2, 64), grid).scale.shape
        torch.Size([2, 2])
        """
        size: int | None = getattr(grid.granularity, "size", None)
        form = WeightFormat(dtype=grid.dtype, shape=shape, group_size=size, super_block=grid.super_block)
        if isinstance(form.dtype, FloatFormat):
            return FloatWeight.planned(form)
        return cls(form, symmetric=grid.symmetric is True, indexed=not grid.even)

    @property
    def _has_middle_zeros(self) -> bool:
        return self._symmetric
