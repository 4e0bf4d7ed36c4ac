"""What the program says: results on standard output, everything else on standard error."""

from __future__ import annotations

import sys

import attrs
import typer

from tico_cli._tables import fitted
from tico_config import BaseConfig


def show(markdown: str) -> None:
    """Write a result: as it is where something else reads it, and to fit where a person does."""
    width = typer.get_terminal_size().columns if sys.stdout.isatty() else None
    typer.echo(markdown if width is None else fitted(markdown, width))


def tell(message: str) -> None:
    """Tell on standard error what goes on."""
    typer.echo(f"tico: {message}", err=True)


def bytes_text(size: int) -> str:
    """Return a number of bytes in the unit that suits it.

    >>> bytes_text(1_500_000)
    '1.5 MB'
    """
    for power, unit in ((9, "GB"), (6, "MB"), (3, "kB")):
        if size >= 10**power:
            return f"{size / 10**power:.1f} {unit}"
    return f"{size} bytes"


def config_text(config: BaseConfig) -> str:
    """Return `config` with the fields that are not at their defaults.

    >>> from tico_config import GPTQConfig
    >>> config_text(GPTQConfig(bits=3))
    'GPTQConfig(bits=3)'
    """
    default = type(config)()
    names = [field.name for field in attrs.fields(type(config))]
    changed = [name for name in names if getattr(config, name) != getattr(default, name)]
    return f"{type(config).__name__}({', '.join(f'{name}={getattr(config, name)}' for name in changed)})"


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """Return a table in Markdown.

    >>> print(table(("name", "bits"), [("fc", "4")]))
    | name | bits |
    |---|---|
    | fc | 4 |
    """
    cells = [[each.replace("|", r"\|") for each in row] for row in (head, *rows)]
    first, *others = (f"| {' | '.join(row)} |" for row in cells)
    return "\n".join([first, "|---" * len(head) + "|", *others])
