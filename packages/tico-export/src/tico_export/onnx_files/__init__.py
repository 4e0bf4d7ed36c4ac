"""Files of ONNX: how a program becomes one, with integers as initializers."""

from tico_export.onnx_files._cached import CacheShape, Logits, cache_problems, check_logits
from tico_export.onnx_files._generating import Step, generated
from tico_export.onnx_files._writing import (
    OPSETS,
    Model,
    cached_model,
    onnx_model,
    onnx_problems,
    onnx_program,
    save_onnx,
)

__all__ = [
    "OPSETS",
    "CacheShape",
    "Logits",
    "Model",
    "Step",
    "cache_problems",
    "cached_model",
    "check_logits",
    "generated",
    "onnx_model",
    "onnx_problems",
    "onnx_program",
    "save_onnx",
]
