"""Programs of torch.export: how a converted model becomes one, their dialects, and how files are loaded."""

from tico_export.program._bounds import Bound, kernel_bound, rounding_bound, steps_in
from tico_export.program._circle import to_circle
from tico_export.program._dialects import DIALECTS, Dialect, dialect_problems, program_in
from tico_export.program._elements import element_operator, with_elements
from tico_export.program._exported import exported, load_program, register_dialect
from tico_export.program._found_grids import FoundGrid, grids_in
from tico_export.program._passes import with_grouped_products, with_grouped_rows
from tico_export.program._running import fed, floats_of

__all__ = [
    "DIALECTS",
    "Bound",
    "Dialect",
    "FoundGrid",
    "dialect_problems",
    "element_operator",
    "exported",
    "fed",
    "floats_of",
    "grids_in",
    "kernel_bound",
    "load_program",
    "program_in",
    "register_dialect",
    "rounding_bound",
    "steps_in",
    "to_circle",
    "with_elements",
    "with_grouped_products",
    "with_grouped_rows",
]
