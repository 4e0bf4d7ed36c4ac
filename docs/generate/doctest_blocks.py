"""Examples of docstrings as blocks of code: docstrings hold them without a fence, as doctest takes them."""

from __future__ import annotations

from collections.abc import Iterator

import griffe


def fenced(text: str) -> str:
    r"""Return `text` with a fence around each example, which ends at an empty line.

    >>> print(fenced("A sum.\n\n>>> 1 + 1\n2"))
    A sum.
    <BLANKLINE>
    ```pycon
    >>> 1 + 1
    2
    ```
    """
    return "\n".join(_lines(text.splitlines()))


def _lines(lines: list[str]) -> Iterator[str]:
    inside = False
    for line in lines:
        if not inside and line.startswith(">>> "):
            inside = True
            yield "```pycon"
        elif inside and not line.strip():
            inside = False
            yield "```"
        yield line
    if inside:
        yield "```"


class DoctestBlocks(griffe.Extension):  # type: ignore[misc]  # griffe is not there for mypy
    """Has every docstring shown with its examples as code."""

    def on_object(self, *, obj: griffe.Object, **_: object) -> None:
        """Change the docstring of an object once it has been read."""
        if obj.docstring is not None:
            obj.docstring.value = fenced(obj.docstring.value)
