"""plan, prepare, calibrate, convert, and files of what calibration has seen."""

from tico_quantizers.lifecycle._calibrate import calibrate
from tico_quantizers.lifecycle._calibration_files import load_calibration, save_calibration
from tico_quantizers.lifecycle._copies import detached_copy
from tico_quantizers.lifecycle._lifecycle import convert, convert_together, prepare
from tico_quantizers.lifecycle._planning import plan
from tico_quantizers.lifecycle._stages import calibration_of

__all__ = [
    "calibrate",
    "calibration_of",
    "convert",
    "convert_together",
    "detached_copy",
    "load_calibration",
    "plan",
    "prepare",
    "save_calibration",
]
