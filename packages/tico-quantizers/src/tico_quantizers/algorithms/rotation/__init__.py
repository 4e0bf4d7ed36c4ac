"""Rotation: orthogonal matrices folded into weights, which spread outliers over all channels."""

from tico_quantizers.algorithms.rotation._module import RotationQuantizer

__all__ = ["RotationQuantizer"]
