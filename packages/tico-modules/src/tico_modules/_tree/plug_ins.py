"""What installed packages offer by entry points, and what of it cannot be used."""

from __future__ import annotations

import warnings
from importlib.metadata import EntryPoint

import attrs


@attrs.frozen
class BrokenPlugIn:
    """An entry point that cannot be used, and the reason in words.

    >>> point = EntryPoint("clipping", "tico_clipping:ENTRY", "tico.quantizers")
    >>> str(BrokenPlugIn(point, "it offers nothing"))
    "the plug-in 'clipping' (tico_clipping:ENTRY) cannot be used: it offers nothing"
    """

    point: EntryPoint
    reason: str

    def __str__(self) -> str:
        """Return a sentence with the name, the distribution and the reason."""
        source = f" of the distribution {self.point.dist.name}" if self.point.dist else ""
        return f"the plug-in {self.point.name!r} ({self.point.value}){source} cannot be used: {self.reason}"

    def warn(self) -> None:
        """Warn that the plug-in is left out, so that all others can be used."""
        warnings.warn(f"{self}; it is left out", RuntimeWarning, stacklevel=3)


def load_plug_in(point: EntryPoint) -> object:
    """Return what `point` names, or a `BrokenPlugIn`: foreign code may fail in any way.

    >>> str(load_plug_in(EntryPoint("mine", "math:no", "tico.wrappers")))
    "the plug-in 'mine' (math:no) cannot be used: AttributeError: module 'math' has no attribute 'no'"
    """
    try:
        offered: object = point.load()
    except Exception as error:  # noqa: BLE001
        return BrokenPlugIn(point, f"{type(error).__name__}: {error}")
    return offered
