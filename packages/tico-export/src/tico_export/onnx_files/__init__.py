"""Files of ONNX: how a program becomes one, with integers as initializers."""

from tico_export.onnx_files._writing import OPSETS, onnx_model, onnx_problems, onnx_program, save_onnx

__all__ = ["OPSETS", "onnx_model", "onnx_problems", "onnx_program", "save_onnx"]
