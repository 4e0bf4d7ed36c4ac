"""The formats of this package, a file each."""

from tico_export.formats._awq_format import AWQ_FORMAT_ENTRY, AWQFormat
from tico_export.formats._compressed_tensors import COMPRESSED_TENSORS_ENTRY, CompressedTensors
from tico_export.formats._executorch import EXECUTORCH_ENTRY, ExecuTorch
from tico_export.formats._gguf import GGUF, GGUF_ENTRY
from tico_export.formats._gptq_format import GPTQ_FORMAT_ENTRY, GPTQFormat
from tico_export.formats._onnx import ONNX_ENTRY, Onnx
from tico_export.formats._openvino import OPENVINO_ENTRY, OpenVINO
from tico_export.formats._pt2 import PT2, PT2_ENTRY

__all__ = [
    "AWQ_FORMAT_ENTRY",
    "COMPRESSED_TENSORS_ENTRY",
    "EXECUTORCH_ENTRY",
    "GGUF",
    "GGUF_ENTRY",
    "GPTQ_FORMAT_ENTRY",
    "ONNX_ENTRY",
    "OPENVINO_ENTRY",
    "PT2",
    "PT2_ENTRY",
    "AWQFormat",
    "CompressedTensors",
    "ExecuTorch",
    "GPTQFormat",
    "Onnx",
    "OpenVINO",
]
