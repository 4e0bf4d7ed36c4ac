"""Converted models in the formats of other runtimes, each file checked by the runtime that it is for."""

from tico_export._export import export
from tico_export._result import ExportResult
from tico_export.formats import (
    GGUF,
    PT2,
    AWQFormat,
    CompressedTensors,
    ExecuTorch,
    GPTQFormat,
    Onnx,
    OpenVINO,
)
from tico_export.gguf_files import write_imatrix
from tico_export.program import load_program, to_circle
from tico_export.protocol import (
    ENTRY_POINT_GROUP,
    Consumer,
    Example,
    Exporter,
    ExporterEntry,
    ExporterRegistry,
    ExportTarget,
    exporter_entry,
)
from tico_export.source import Grid, QuantizedWeight, Source

__all__ = [
    "ENTRY_POINT_GROUP",
    "GGUF",
    "PT2",
    "AWQFormat",
    "CompressedTensors",
    "Consumer",
    "Example",
    "ExecuTorch",
    "ExportResult",
    "ExportTarget",
    "Exporter",
    "ExporterEntry",
    "ExporterRegistry",
    "GPTQFormat",
    "Grid",
    "Onnx",
    "OpenVINO",
    "QuantizedWeight",
    "Source",
    "export",
    "exporter_entry",
    "load_program",
    "to_circle",
    "write_imatrix",
]
