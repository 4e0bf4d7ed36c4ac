"""How a model family takes part: wrappers with quantization points, and the quantizer that uses them."""

from tico_wrapq._attention import QuantMultiheadAttention, QuantTransformerEncoderLayer
from tico_wrapq._calibration_file import load_calibration, save_calibration
from tico_wrapq._coverage import Coverage, CoverageLine, coverage
from tico_wrapq._embedding_bag import QuantEmbeddingBag, QuantizedEmbeddingBag
from tico_wrapq._folds import FoldedNorm
from tico_wrapq._joints import Add, Concat, MatMul, Mul, QuantJoint, QuantOutput, QuantStub
from tico_wrapq._layers import (
    QuantConv,
    QuantConvTranspose,
    QuantEmbedding,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantLinear,
)
from tico_wrapq._llama import QuantLlamaDecoderLayer, QuantLlamaMLP
from tico_wrapq._llama_attention import QuantLlamaAttention
from tico_wrapq._llama_embedding import QuantScaledEmbedding
from tico_wrapq._llama_steps import QuantSteppedAttention, QuantSteppedNorm, QuantSteppedSiLU
from tico_wrapq._mode import Mode
from tico_wrapq._norms import QuantizedNorm, QuantNorm
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
    QuantConvTranspose,
    QuantEmbeddingBag,
    QuantizedEmbeddingBag,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantUnary,
    QuantNorm,
    QuantizedNorm,
    FoldedNorm,
    QuantJoint,
    QuantOutput,
    QuantLlamaAttention,
    QuantLlamaDecoderLayer,
    QuantMultiheadAttention,
    QuantTransformerEncoderLayer,
    QuantLlamaMLP,
    QuantScaledEmbedding,
    QuantSteppedAttention,
    QuantSteppedNorm,
    QuantSteppedSiLU,
)

__all__ = [
    "ACT_IN",
    "ACT_OUT",
    "RESTORABLE_MODULES",
    "Add",
    "Concat",
    "Coverage",
    "CoverageLine",
    "FoldedNorm",
    "Frozen",
    "MatMul",
    "Mode",
    "Mul",
    "PTQCalibration",
    "PTQQuantizer",
    "PTQWrapper",
    "Passing",
    "PointDeclaration",
    "QuantConv",
    "QuantConvTranspose",
    "QuantEmbedding",
    "QuantEmbeddingBag",
    "QuantInteger",
    "QuantIntegerEmbedding",
    "QuantJoint",
    "QuantLinear",
    "QuantLlamaAttention",
    "QuantLlamaDecoderLayer",
    "QuantLlamaMLP",
    "QuantModuleBase",
    "QuantMultiheadAttention",
    "QuantNorm",
    "QuantOutput",
    "QuantPoint",
    "QuantScaledEmbedding",
    "QuantSteppedAttention",
    "QuantSteppedNorm",
    "QuantSteppedSiLU",
    "QuantStub",
    "QuantTransformerEncoderLayer",
    "QuantUnary",
    "QuantizedEmbeddingBag",
    "QuantizedNorm",
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
