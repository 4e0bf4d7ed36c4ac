"""Scales and offsets of groups on the grids that a super-block has for them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch
from torch import Tensor

from tico_config import Found, NumericsError, Problem, SuperBlock
from tico_quantizers.solvers._group_grid import GroupGrid

_LEAST = 2.0**-24
"""The smallest float16 above 0."""


def under_super_block(grids: Sequence[GroupGrid], shared: SuperBlock) -> list[GroupGrid]:
    """Return `grids` with their scales rounded to integers times one float16 for each row.

    The largest scale of a row gets the largest integer, and none gets 0. Offsets are integers times another
    float16, and may be 0; what they are rounded from leaves the middle of the group's range where it was,
    whatever became of its scale. The products are exact in float32.

    Raises:
        NumericsError: a scale or an offset is beyond what the super-block can hold.
    """
    wanted = torch.stack([grid.scale for grid in grids])
    scales = _products(wanted, shared.scale_bits, 1, "scale", shared)
    offsets: Sequence[Tensor | None] = [grid.offset for grid in grids]
    if shared.offset_bits is not None:
        centred = _centred(grids, scales - wanted)
        offsets = _products(centred, shared.offset_bits, 0, "offset", shared).unbind(0)
    return [
        GroupGrid(attrs.evolve(grid.params, scale=scale), offset)
        for grid, scale, offset in zip(grids, scales.unbind(0), offsets, strict=True)
    ]


def _centred(grids: Sequence[GroupGrid], wider: Tensor) -> Tensor:
    """Return the offsets that leave the middle of each range in its place where scales got `wider`."""
    given = torch.stack([grid.scale.new_zeros(()) if grid.offset is None else grid.offset for grid in grids])
    dtype = grids[0].dtype
    return (given + wider * ((dtype.qmax - dtype.qmin) / 2)).clamp_(min=0)


def _products(values: Tensor, bits: int, least: int, name: str, shared: SuperBlock) -> Tensor:
    """Return `values` (groups, rows) as integers of `bits` bits from `least` on, times a float16 a row."""
    most = 2**bits - 1
    unit = (values.amax(0) / most).half().float().clamp_(min=_LEAST)
    if not bool(unit.isfinite().all()):
        found = Found(f"one with {'an' if name == 'offset' else 'a'} {name} of {values.amax().item():g}")
        expected = f"{name}s up to {65504 * most} in {shared}"
        raise NumericsError(Problem(field="weight", value=found, expected=expected))
    products: Tensor = (values / unit).round_().clamp_(least, most) * unit
    return products
