"""The exporters of this package."""

from __future__ import annotations

from typing import Final

from tico_export.formats import EXECUTORCH_ENTRY, GGUF_ENTRY, ONNX_ENTRY, OPENVINO_ENTRY, PT2_ENTRY
from tico_export.protocol import ExporterEntry

BUILT_IN: Final[tuple[ExporterEntry, ...]] = (
    EXECUTORCH_ENTRY,
    GGUF_ENTRY,
    ONNX_ENTRY,
    OPENVINO_ENTRY,
    PT2_ENTRY,
)
