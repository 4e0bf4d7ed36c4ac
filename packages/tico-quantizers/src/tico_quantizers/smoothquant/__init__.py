"""SmoothQuant: part of the activations' range moved into the weights before either is quantized."""

from tico_quantizers.smoothquant._calibration import SmoothQuantCalibration
from tico_quantizers.smoothquant._core import smoothing_scale
from tico_quantizers.smoothquant._module import SmoothQuantQuantizer

__all__ = ["SmoothQuantCalibration", "SmoothQuantQuantizer", "smoothing_scale"]
