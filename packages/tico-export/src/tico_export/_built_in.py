"""The exporters of this package."""

from __future__ import annotations

from typing import Final

from tico_export.formats import (
    AWQ_FORMAT_ENTRY,
    COMPRESSED_TENSORS_ENTRY,
    EXECUTORCH_ENTRY,
    GGUF_ENTRY,
    GPTQ_FORMAT_ENTRY,
    ONNX_ENTRY,
    OPENVINO_ENTRY,
    PT2_ENTRY,
)
from tico_export.protocol import ExporterEntry

BUILT_IN: Final[tuple[ExporterEntry, ...]] = (
    AWQ_FORMAT_ENTRY,
    COMPRESSED_TENSORS_ENTRY,
    EXECUTORCH_ENTRY,
    GGUF_ENTRY,
    GPTQ_FORMAT_ENTRY,
    ONNX_ENTRY,
    OPENVINO_ENTRY,
    PT2_ENTRY,
)
