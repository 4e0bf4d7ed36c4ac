"""Packages and algorithms enter each other by their public doors only."""

from __future__ import annotations

import ast
import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest

from distributions import LAYERS, MODULES, ROOT


def imported_modules(path: Path) -> Iterator[str]:
    """Yield the modules of this repository that a file imports, or imports names of."""
    tops = {module.partition(".")[0] for modules in MODULES.values() for module in modules}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), path)):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (module for module in found if module.partition(".")[0] in tops)


def own_prefix(path: Path, source: Path) -> str:
    """Return the innermost public package that holds the file, whose private files it may use."""
    folders = path.relative_to(source).parts[:-1]
    return ".".join(itertools.takewhile(lambda part: not part.startswith("_"), folders))


def is_private(module: str, own: str) -> bool:
    """Tell whether a module or name is private to another room than `own`."""
    inside = f"{module}.".startswith(f"{own}.")
    return not inside and any(part.startswith("_") for part in module.split("."))


@pytest.mark.parametrize("name", LAYERS)
def test_nothing_private_is_used_from_outside(name: str) -> None:
    """What the built-in algorithms, wrappers and the facade use, a third party can use as well."""
    source = ROOT / "packages" / name / "src"
    broken = [
        f"{path.relative_to(source)}: {module}"
        for path in sorted(source.rglob("*.py"))
        for module in imported_modules(path)
        if is_private(module, own_prefix(path, source)) and path.name != "__init__.py"
    ]
    assert broken == []


def test_the_test_would_notice() -> None:
    """A private file of another room is told from one's own."""
    assert is_private("tico_quantizers.layers._matrix.columns", "tico_quantizers.algorithms.gptq")
    assert not is_private("tico_quantizers.layers._matrix.columns", "tico_quantizers.layers")
    assert not is_private("tico_quantizers.layers.columns", "tico_quantizers.algorithms.gptq")
