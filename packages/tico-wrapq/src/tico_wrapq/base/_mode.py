"""Where a wrapper stands in its life."""

from __future__ import annotations

import enum


class Mode(enum.Enum):
    """`NO_QUANT`: the float function. `CALIB`: the same, watched. `QUANT`: every point on its grid."""

    NO_QUANT = "no_quant"
    CALIB = "calib"
    QUANT = "quant"
