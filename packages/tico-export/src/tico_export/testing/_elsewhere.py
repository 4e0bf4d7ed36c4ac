"""Exports written in a process of its own."""

from __future__ import annotations

import functools
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from tico_export.protocol import ExporterRegistry
from tico_export.testing._exporter_case import ExporterCase

_SEED = "271828"


def files_elsewhere(owner: type, name: str) -> dict[str, bytes]:
    """Return the files of an export of the case `name` of `owner`, written by another process.

    That process imports the file that defines the class `owner`, and hashes texts otherwise than this one.
    """
    with TemporaryDirectory() as folder:
        script = f"import {__name__} as elsewhere; elsewhere.main()"
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": _SEED}
        arguments = (folder, inspect.getfile(owner), owner.__qualname__, name)
        subprocess.run([sys.executable, "-c", script, *arguments], check=True, env=environment)
        return files_in(Path(folder))


def files_in(folder: Path) -> dict[str, bytes]:
    """Return the contents of everything below `folder`, by relative path."""
    every = sorted(each for each in folder.rglob("*") if each.is_file())
    return {str(each.relative_to(folder)): each.read_bytes() for each in every}


def main() -> None:
    """Write the export of the case that the command line names."""
    folder, source, owner, name = sys.argv[1:]
    spec = importlib.util.spec_from_file_location("promised", source)
    if spec is None or spec.loader is None:
        raise ImportError(source)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    kind: type = functools.reduce(getattr, owner.split("."), module)  # type: ignore[assignment]  # a class
    case: ExporterCase = getattr(kind, "cases")[name]  # noqa: B009
    registry: ExporterRegistry | None = getattr(kind, "registry")  # noqa: B009
    case.export(Path(folder), registry)
