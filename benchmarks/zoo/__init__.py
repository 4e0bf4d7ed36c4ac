"""Tiny random models of the architectures that people quantize, and what each algorithm makes of them."""

from zoo._architecture import Architecture
from zoo._cell import ABSENT, FAULT, FLOAT, LOW, REFUSED, Cell, measured, tried
from zoo._columns import COLUMNS
from zoo._experts import EXPERTS
from zoo._hybrids import HYBRIDS
from zoo._kept_rows import KeptRows, Row
from zoo._language import LANGUAGE
from zoo._networks import NETWORKS
from zoo._sequences import SEQUENCES
from zoo._trial import Trial
from zoo._vision import VISION
from zoo._vision_language import VISION_LANGUAGE

ARCHITECTURES = (*LANGUAGE, *EXPERTS, *HYBRIDS, *SEQUENCES, *VISION, *NETWORKS, *VISION_LANGUAGE)
"""All of them, in the order of the table."""

__all__ = [
    "ABSENT",
    "ARCHITECTURES",
    "COLUMNS",
    "FAULT",
    "FLOAT",
    "LOW",
    "REFUSED",
    "Architecture",
    "Cell",
    "KeptRows",
    "Row",
    "Trial",
    "measured",
    "tried",
]
