"""`tico_quantizers.algorithms.gptq`, under its short name."""

from tico_quantizers.algorithms.gptq import (
    GPTQQuantizer,
    Solution,
    nearest,
    quantize_weight,
    solve,
)

__all__ = ["GPTQQuantizer", "Solution", "nearest", "quantize_weight", "solve"]
