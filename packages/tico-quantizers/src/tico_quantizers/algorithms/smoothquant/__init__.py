"""SmoothQuant: part of the activations' range moved into the weights before either is quantized."""

from tico_quantizers.algorithms.smoothquant._calibration import SmoothQuantCalibration
from tico_quantizers.algorithms.smoothquant._module import SmoothQuantQuantizer
from tico_quantizers.solvers import smoothing_scale

__all__ = ["SmoothQuantCalibration", "SmoothQuantQuantizer", "smoothing_scale"]
