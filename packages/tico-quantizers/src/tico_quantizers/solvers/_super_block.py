"""Scales of groups on the grid that a super-block has for them."""

from __future__ import annotations

from collections.abc import Sequence

import attrs
import torch

from tico_config import Found, NumericsError, Problem, SuperBlock
from tico_observers import AffineParams

_LEAST = 2.0**-24
"""The smallest float16 above 0."""


def under_super_block(grids: Sequence[AffineParams], shared: SuperBlock) -> list[AffineParams]:
    """Return `grids` with their scales rounded to integers times one float16 for each row.

    The largest scale of a row gets the largest integer, and none gets 0. The products are exact in float32.

    Raises:
        NumericsError: a scale is beyond what the super-block can hold.
    """
    most = 2**shared.scale_bits - 1
    scales = torch.stack([grid.scale for grid in grids])
    unit = (scales.amax(0) / most).half().float().clamp_(min=_LEAST)
    if not bool(unit.isfinite().all()):
        found = Found(f"one with a scale of {scales.amax().item():g}")
        raise NumericsError(
            Problem(field="weight", value=found, expected=f"scales up to {65504 * most} in {shared}")
        )
    steps = (scales / unit).round_().clamp_(1, most)
    products = (steps * unit).unbind(0)
    return [attrs.evolve(grid, scale=scale) for grid, scale in zip(grids, products, strict=True)]
