"""GPTQ: weights rounded one column at a time, each error made up for by the columns that follow."""

from tico_quantizers.algorithms.gptq._module import GPTQCalibration, GPTQQuantizer
from tico_quantizers.solvers import Solution, nearest, quantize_weight, solve

__all__ = ["GPTQCalibration", "GPTQQuantizer", "Solution", "nearest", "quantize_weight", "solve"]
