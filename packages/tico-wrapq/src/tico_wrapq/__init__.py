"""How a model family takes part: wrappers with quantization points, and the quantizer that uses them."""

from tico_wrapq._calibration_file import load_calibration, save_calibration
from tico_wrapq._coverage import Coverage, CoverageLine, coverage
from tico_wrapq._layers import (
    QuantConv,
    QuantEmbedding,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantLinear,
)
from tico_wrapq._llama import QuantLlamaMLP
from tico_wrapq._mode import Mode
from tico_wrapq._point import (
    ACT_IN,
    ACT_OUT,
    Frozen,
    Passing,
    PointDeclaration,
    QuantPoint,
    Role,
)
from tico_wrapq._quant_module_base import QuantModuleBase, WeightCodes
from tico_wrapq._quantizer import PTQCalibration, PTQQuantizer
from tico_wrapq._registry import (
    WrapperEntry,
    WrapperRegistry,
    lookup,
    register,
    try_register,
    wrapper_entry,
)
from tico_wrapq._unary import QuantUnary
from tico_wrapq._watching import Watching
from tico_wrapq._wrapper import PTQWrapper

RESTORABLE_MODULES = (
    QuantLinear,
    QuantEmbedding,
    QuantConv,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantUnary,
    QuantLlamaMLP,
)

__all__ = [
    "ACT_IN",
    "ACT_OUT",
    "RESTORABLE_MODULES",
    "Coverage",
    "CoverageLine",
    "Frozen",
    "Mode",
    "PTQCalibration",
    "PTQQuantizer",
    "PTQWrapper",
    "Passing",
    "PointDeclaration",
    "QuantConv",
    "QuantEmbedding",
    "QuantInteger",
    "QuantIntegerEmbedding",
    "QuantLinear",
    "QuantLlamaMLP",
    "QuantModuleBase",
    "QuantPoint",
    "QuantUnary",
    "Role",
    "Watching",
    "WeightCodes",
    "WrapperEntry",
    "WrapperRegistry",
    "coverage",
    "load_calibration",
    "lookup",
    "register",
    "save_calibration",
    "try_register",
    "wrapper_entry",
]
