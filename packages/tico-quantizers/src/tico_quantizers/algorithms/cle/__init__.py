"""Cross-layer equalization: weights of neighbouring layers with equal ranges in each channel."""

from tico_quantizers.algorithms.cle._module import CLEQuantizer

__all__ = ["CLEQuantizer"]
