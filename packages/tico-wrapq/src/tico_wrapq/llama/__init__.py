"""Wrappers of the model families of transformers that are built like LLaMA."""

from tico_wrapq.llama import _served_elsewhere as _served_elsewhere
from tico_wrapq.llama._attention import QuantLlamaAttention
from tico_wrapq.llama._decoder_layer import QuantLlamaDecoderLayer, QuantLlamaMLP
from tico_wrapq.llama._embedding import QuantScaledEmbedding
from tico_wrapq.llama._family import FAMILIES, classes_of
from tico_wrapq.llama._steps import QuantSteppedAttention, QuantSteppedNorm, QuantSteppedSiLU

__all__ = [
    "FAMILIES",
    "QuantLlamaAttention",
    "QuantLlamaDecoderLayer",
    "QuantLlamaMLP",
    "QuantScaledEmbedding",
    "QuantSteppedAttention",
    "QuantSteppedNorm",
    "QuantSteppedSiLU",
    "classes_of",
]
