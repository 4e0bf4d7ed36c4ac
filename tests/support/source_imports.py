"""The imports that source files contain, and when each takes place."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import attrs


@attrs.frozen
class SourceImport:
    """One import of a top-level module from outside the standard library."""

    path: Path
    line: int
    module: str
    is_lazy: bool
    """Whether it takes place when a function runs, not when the file is imported."""


def source_imports(folder: Path) -> Iterator[SourceImport]:
    """Yield what the files below `folder` import, leaving out what only the type checker sees."""
    for path in sorted(folder.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"), path)
        for line, module, is_lazy in _imports_in(tree, is_lazy=False):
            if module not in sys.stdlib_module_names:
                yield SourceImport(path, line, module, is_lazy)


def _imports_in(node: ast.AST, *, is_lazy: bool) -> Iterator[tuple[int, str, bool]]:
    """Yield line, top-level module and laziness of each import below `node`."""
    match node:
        case ast.Import(names=names, lineno=line):
            yield from ((line, alias.name.partition(".")[0], is_lazy) for alias in names)
        case ast.ImportFrom(module=str(module), lineno=line):
            yield line, module.partition(".")[0], is_lazy
        case ast.If(test=ast.Name(id="TYPE_CHECKING"), orelse=otherwise):
            for statement in otherwise:
                yield from _imports_in(statement, is_lazy=is_lazy)
        case _:
            inside = is_lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            for child in ast.iter_child_nodes(node):
                yield from _imports_in(child, is_lazy=inside)
