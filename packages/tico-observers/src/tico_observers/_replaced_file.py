"""Files replaced as a whole: a reader finds the old one or the new one, whenever the writer stops."""

from __future__ import annotations

import os
import secrets
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replaced_file(target: Path) -> Iterator[BinaryIO]:
    """Give a file to write to, which takes the place of `target` once it is whole and on the disk.

    It has a temporary name in the same folder until then. What killed writers left there is removed first.

    Raises:
        OSError: the file cannot be written; what was at `target` before is still there.
    """
    _remove_orphans(target)
    temporary, file = _locked_file(target)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
        _sync_folder(target.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def locked_folder(folder: Path, *, shared: bool = False) -> Iterator[None]:
    """Keep other processes that lock `folder` waiting; `shared` locks keep out those that are not.

    Where folders cannot be locked (Windows, some network file systems) nothing is kept waiting.
    """
    if sys.platform == "win32":
        yield
        return
    import fcntl

    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _locked_file(target: Path) -> tuple[Path, BinaryIO]:
    """Return a new file beside `target`, locked as long as its writer lives."""
    while True:
        temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}.tmp")
        file = temporary.open("xb")
        _lock(file, wait=True)
        # Between its making and its locking, another writer can have taken it for an orphan.
        if temporary.exists():
            return temporary, file
        file.close()


def _remove_orphans(target: Path) -> None:
    """Remove the temporary files of writers that no longer live, where locks can tell."""
    for path in target.parent.iterdir():
        if path.name.startswith(f".{target.name}.") and path.name.endswith(".tmp"):
            with suppress(OSError), path.open("rb") as file:
                if _lock(file, wait=False):
                    path.unlink()


def _lock(file: BinaryIO, *, wait: bool) -> bool:
    """Lock `file` against other writers; return whether that succeeded."""
    if sys.platform == "win32":
        return False
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
