"""Wrappers of the modules of `torch.nn`, of integer layers, and of arithmetic between tensors."""

from tico_wrapq.torch_nn import _pass_through as _pass_through
from tico_wrapq.torch_nn._attention import QuantMultiheadAttention, QuantTransformerEncoderLayer
from tico_wrapq.torch_nn._embedding_bag import QuantEmbeddingBag, QuantizedEmbeddingBag
from tico_wrapq.torch_nn._joints import (
    Add,
    Concat,
    MatMul,
    Mul,
    QuantComparison,
    QuantJoint,
    QuantOutput,
    QuantStub,
)
from tico_wrapq.torch_nn._layer_work import layer_work, multiplies
from tico_wrapq.torch_nn._layers import (
    LayerWrapper,
    QuantConv,
    QuantConvTranspose,
    QuantEmbedding,
    QuantInteger,
    QuantIntegerEmbedding,
    QuantLinear,
    QuantTransposedLinear,
    why_not_integer,
)
from tico_wrapq.torch_nn._norms import NORM_WEIGHT, NormSettings, QuantizedNorm, QuantNorm, UsedStatistics
from tico_wrapq.torch_nn._unary import QuantUnary

__all__ = [
    "NORM_WEIGHT",
    "Add",
    "Concat",
    "LayerWrapper",
    "MatMul",
    "Mul",
    "NormSettings",
    "QuantComparison",
    "QuantConv",
    "QuantConvTranspose",
    "QuantEmbedding",
    "QuantEmbeddingBag",
    "QuantInteger",
    "QuantIntegerEmbedding",
    "QuantJoint",
    "QuantLinear",
    "QuantMultiheadAttention",
    "QuantNorm",
    "QuantOutput",
    "QuantStub",
    "QuantTransformerEncoderLayer",
    "QuantTransposedLinear",
    "QuantUnary",
    "QuantizedEmbeddingBag",
    "QuantizedNorm",
    "UsedStatistics",
    "layer_work",
    "multiplies",
    "why_not_integer",
]
