"""A converted model as every writer sees it: codes, scales, grids, names and ties, read off once."""

from tico_export.source._grid import Grid
from tico_export.source._overflow import overflow_problems
from tico_export.source._quantized_weight import QuantizedWeight
from tico_export.source._source import Source

__all__ = ["Grid", "QuantizedWeight", "Source", "overflow_problems"]
