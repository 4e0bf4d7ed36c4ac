"""The public names of tico_export."""

from __future__ import annotations

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_export` promises."""

    package = "tico_export"
    hidden = ("tico_quantizers", "tico_pt2e", "tico_wrapq", "tico_api", "tico")
    names = (
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
        "QuantizedWeight",
        "Onnx",
        "OpenVINO",
        "Source",
        "export",
        "exporter_entry",
        "load_program",
        "to_circle",
        "write_imatrix",
    )
