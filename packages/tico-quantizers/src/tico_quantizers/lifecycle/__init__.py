"""The two calls around the user's calibration, each of them all or nothing, and files of what it has seen."""

from tico_quantizers.lifecycle._calibration_files import load_calibration, save_calibration
from tico_quantizers.lifecycle._copies import detached_copy
from tico_quantizers.lifecycle._lifecycle import convert, prepare

__all__ = ["convert", "detached_copy", "load_calibration", "prepare", "save_calibration"]
