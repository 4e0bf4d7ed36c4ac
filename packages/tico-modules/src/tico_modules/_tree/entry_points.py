"""Entry points of installed packages."""

from __future__ import annotations

import functools
import sys
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path


def find_entry_points(group: str) -> tuple[EntryPoint, ...]:
    """Return the entry points of `group` in the order of their names.

    The metadata of installed packages are read again only if ``sys.path`` has changed or something was
    installed in one of its folders, as reading takes milliseconds for each package.
    """
    return _read(group, tuple((folder, _read_mtime(folder)) for folder in sys.path))


@functools.lru_cache(maxsize=8)
def _read(group: str, folders: tuple[tuple[str, int], ...]) -> tuple[EntryPoint, ...]:
    return tuple(sorted(entry_points(group=group), key=lambda point: point.name))


def _read_mtime(folder: str) -> int:
    """Return the time at which the listing of `folder` last changed, in nanoseconds; 0 without a folder."""
    try:
        return Path(folder).stat().st_mtime_ns
    except OSError:
        return 0
