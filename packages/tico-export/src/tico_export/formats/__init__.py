"""The formats of this package, a file each."""

from tico_export.formats._pt2 import PT2, PT2_ENTRY

__all__ = ["PT2", "PT2_ENTRY"]
