"""Scales of a quantized model, tuned together against the output of the float one."""

from tico_quantizers.algorithms.scale_tune._module import ScaleTuneQuantizer

__all__ = ["ScaleTuneQuantizer"]
