"""Names that were public here before they moved or were renamed; they go on working, with a warning."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Mapping
from typing import Final

# Old name, the package that has it now, and its name there.
RENAMED: Final[Mapping[str, tuple[str, str]]] = {
    "GPTQEverywhere": ("tico_pt2e", "GPTQEverywhere"),
    "PT2EQuantizer": ("tico_pt2e", "PT2EQuantizer"),
    "QuantGraph": ("tico_pt2e", "QuantGraph"),
    "below": ("tico_modules", "select_below"),
    "offered_entry_points": ("tico_modules", "find_entry_points"),
    "stand_in": ("tico_modules", "carry_over"),
    "tensor_of": ("tico_modules", "require_tensor"),
    "tied_paths": ("tico_modules", "find_tied_paths"),
}


def find_renamed(name: str) -> object:
    """Return what was called `name`, and warn with its new name.

    Raises:
        AttributeError: nothing was ever called so.
        ImportError: the package that has it now is not installed.
    """
    if name not in RENAMED:
        raise AttributeError(f"module 'tico_quantizers' has no attribute {name!r}")
    package, new = RENAMED[name]
    warnings.warn(f"tico_quantizers.{name} is {package}.{new} now", DeprecationWarning, stacklevel=3)
    found: object = getattr(importlib.import_module(package), new)
    return found
