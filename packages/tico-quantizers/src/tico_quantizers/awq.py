"""`tico_quantizers.algorithms.awq`, under its short name."""

from tico_quantizers.algorithms.awq import AWQCalibration, AWQQuantizer

__all__ = ["AWQCalibration", "AWQQuantizer"]
