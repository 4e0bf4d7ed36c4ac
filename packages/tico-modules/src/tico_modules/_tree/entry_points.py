"""What installed packages offer."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path


def find_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of `group` in the order of their names.

    The files that say so are read again only when the folders that modules are imported from are others, or
    something was installed there.
    """
    return _read(group, tuple((folder, _read_mtime(folder)) for folder in sys.path))


@functools.lru_cache(maxsize=8)
def _read(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def _read_mtime(folder: str) -> int:
    """Return when the listing of `folder` was changed, in nanoseconds; 0 where there is none."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0
