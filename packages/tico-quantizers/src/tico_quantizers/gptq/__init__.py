"""GPTQ: weights rounded one column at a time, each error made up for by the columns that follow."""

from tico_quantizers.gptq._calibration import GPTQCalibration
from tico_quantizers.gptq._core import Solution, nearest, quantize_weight, solve
from tico_quantizers.gptq._module import GPTQQuantizer

__all__ = ["GPTQCalibration", "GPTQQuantizer", "Solution", "nearest", "quantize_weight", "solve"]
