"""Post-training quantization in three steps: prepare, calibrate, convert."""

from tico_api._facade import BUILT_IN, prepare
from tico_config import AWQConfig, GPTQConfig, PT2EConfig, PTQConfig, SmoothQuantConfig
from tico_modules import Report, load_quantized, report, save_quantized, set_backend
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.lifecycle import convert
from tico_wrapq import coverage, load_calibration, save_calibration

__all__ = [
    "BUILT_IN",
    "AWQConfig",
    "GPTQConfig",
    "PT2EConfig",
    "PTQConfig",
    "Registry",
    "Report",
    "SmoothQuantConfig",
    "convert",
    "coverage",
    "load_calibration",
    "load_quantized",
    "prepare",
    "quantizer_entry",
    "report",
    "save_calibration",
    "save_quantized",
    "set_backend",
]
