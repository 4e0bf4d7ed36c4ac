"""What an exporter is: targets, exporters, what reads their files, and the registry."""

from tico_export.protocol._consumer import Consumer, Run
from tico_export.protocol._example import Example, given
from tico_export.protocol._exporter import Exporter
from tico_export.protocol._extra import require_extra
from tico_export.protocol._registry import (
    ENTRY_POINT_GROUP,
    AnyExporter,
    ExporterEntry,
    ExporterRegistry,
    exporter_entry,
)
from tico_export.protocol._target import ExportTarget
from tico_export.protocol._versions import UNFIT, Unfit, require_fit

__all__ = [
    "ENTRY_POINT_GROUP",
    "UNFIT",
    "AnyExporter",
    "Consumer",
    "Example",
    "ExportTarget",
    "Exporter",
    "ExporterEntry",
    "ExporterRegistry",
    "Run",
    "Unfit",
    "exporter_entry",
    "given",
    "require_extra",
    "require_fit",
]
