"""AWQ: weights scaled up where the activations are large, clipped, and rounded to nearest."""

from tico_quantizers.algorithms.awq._module import AWQCalibration, AWQQuantizer

__all__ = ["AWQCalibration", "AWQQuantizer"]
