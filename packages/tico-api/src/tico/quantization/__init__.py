"""The public name of `tico_api`."""

from tico_api import (
    BUILT_IN,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    Registry,
    Report,
    SmoothQuantConfig,
    convert,
    coverage,
    load_calibration,
    load_quantized,
    prepare,
    quantizer_entry,
    report,
    save_calibration,
    save_quantized,
)

__all__ = [
    "BUILT_IN",
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
]
