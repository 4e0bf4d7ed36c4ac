"""GPTQ: weights rounded one column at a time, each error made up for by the columns that follow."""

from tico_quantizers.algorithms.gptq._module import GPTQQuantizer
from tico_quantizers.solvers import Solution, nearest, quantize_weight, solve

__all__ = ["GPTQQuantizer", "Solution", "nearest", "quantize_weight", "solve"]
