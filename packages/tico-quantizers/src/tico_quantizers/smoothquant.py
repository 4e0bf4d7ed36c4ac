"""`tico_quantizers.algorithms.smoothquant`, under its short name."""

from tico_quantizers.algorithms.smoothquant import (
    SmoothQuantCalibration,
    SmoothQuantQuantizer,
    smoothing_scale,
)

__all__ = ["SmoothQuantCalibration", "SmoothQuantQuantizer", "smoothing_scale"]
