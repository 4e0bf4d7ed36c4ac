"""Post-training quantization with wrappers: of a model, of one module, and what it covers."""

from tico_wrapq.ptq._coverage import Coverage, CoverageLine, coverage
from tico_wrapq.ptq._folds import FoldedNorm
from tico_wrapq.ptq._quantizer import PTQCalibration, PTQQuantizer
from tico_wrapq.ptq._wrapper import PTQWrapper

__all__ = [
    "Coverage",
    "CoverageLine",
    "FoldedNorm",
    "PTQCalibration",
    "PTQQuantizer",
    "PTQWrapper",
    "coverage",
]
