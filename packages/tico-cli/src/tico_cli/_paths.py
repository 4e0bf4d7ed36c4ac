"""Paths from the command line, and what is wrong with them."""

from __future__ import annotations

import difflib
from pathlib import Path

from tico_config import ConfigError, Found, Problem


def require_file(path: Path, what: str) -> None:
    """Refuse a `path` that is no file.

    Raises:
        ConfigError: with the name in the same folder that is nearest to it.
    """
    if not path.is_file():
        raise _missing(path, what, "file", found="a folder" if path.is_dir() else "nothing")


def require_folder(path: Path, what: str) -> None:
    """Refuse a `path` that is no folder.

    Raises:
        ConfigError: with the name in the same folder that is nearest to it.
    """
    if not path.is_dir():
        raise _missing(path, what, "folder", found="a file" if path.is_file() else "nothing")


def _missing(path: Path, what: str, kind: str, found: str) -> ConfigError:
    parent = next(each for each in path.absolute().parents if each.is_dir())
    part = path.absolute().relative_to(parent).parts[0]
    near = difflib.get_close_matches(part, [each.name for each in parent.iterdir()], n=1)
    remedy = f"the nearest in {parent} is {near[0]!r}" if near and found == "nothing" else "check the path"
    return ConfigError(
        Problem(
            module=str(path),
            field=what,
            value=Found(found),
            expected=f"the path of a {kind}",
            sentence=f"there is no such {kind} for the {what}" if found == "nothing" else None,
            remedy=remedy,
        )
    )
