"""Files of ONNX: how a program becomes one, with integers as initializers."""

from tico_export.onnx_files._cached import CacheShape, WithCache, cache_problems
from tico_export.onnx_files._writing import (
    OPSETS,
    onnx_model,
    onnx_problems,
    onnx_program,
    save_onnx,
    with_names,
)

__all__ = [
    "OPSETS",
    "CacheShape",
    "WithCache",
    "cache_problems",
    "onnx_model",
    "onnx_problems",
    "onnx_program",
    "save_onnx",
    "with_names",
]
