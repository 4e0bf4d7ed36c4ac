"""`tico_quantizers.algorithms.gptq`, under its short name."""

from tico_quantizers.algorithms.gptq import (
    GPTQCalibration,
    GPTQQuantizer,
    Solution,
    nearest,
    quantize_weight,
    solve,
)

__all__ = ["GPTQCalibration", "GPTQQuantizer", "Solution", "nearest", "quantize_weight", "solve"]
