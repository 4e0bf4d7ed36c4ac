"""A page for each public module: its docstring, and that of every name in its `__all__`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import attrs

_TITLES: Final = {"tico_api": "tico.quantization", "tico_api.integrations": "tico.quantization.integrations"}


@attrs.frozen(order=True)
class PublicModule:
    """A module whose names others may use, in the package that it belongs to."""

    package: str
    name: str
    members: tuple[str, ...]

    @property
    def title(self) -> str:
        """The name to import it by."""
        return _TITLES.get(self.name, self.name)

    @property
    def page(self) -> str:
        """The path of its page."""
        return f"reference/api/{self.name}.md"

    def text(self) -> str:
        """Return the Markdown of its page."""
        note = "\n`tico_api` is another name of this module.\n" if self.name == "tico_api" else ""
        options = f"    options:\n      members: {list(self.members)}\n      summary: true\n"
        return f"# {self.title}\n{note}\n::: {self.name}\n{options}"


def public_modules(root: Path) -> list[PublicModule]:
    """Return the modules of all packages that list public names, those of a package side by side.

    >>> from distributions import ROOT
    >>> [each.name for each in public_modules(ROOT) if each.package == "tico-cli"]
    ['tico_cli']
    """
    return sorted(_found(root))


def _found(root: Path) -> Iterator[PublicModule]:
    for path in root.glob("packages/*/src/**/*.py"):
        _, package, _, *parts = path.relative_to(root).with_suffix("").parts
        module = parts[:-1] if parts[-1] == "__init__" else parts
        # `tico.quantization` re-exports `tico_api`, whose page has its title.
        if module[0] == "tico" or any(part.startswith("_") for part in module):
            continue
        members = _names_in_all(ast.parse(path.read_text(encoding="utf-8")))
        rooms = {each.stem for each in path.parent.iterdir()} if parts[-1] == "__init__" else set()
        shown = tuple(sorted(name for name in members if name not in rooms))
        if shown:
            yield PublicModule(package, ".".join(module), shown)


def _names_in_all(tree: ast.Module) -> list[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            names: list[str] = ast.literal_eval(node.value)
            return names
    return []
