"""HTML elements made of texts, which are always escaped."""

from __future__ import annotations

import html
from collections.abc import Iterable
from typing import Final

_VOID: Final = frozenset({"input", "link", "meta"})


class Markup(str):
    """A text that is HTML already."""

    __slots__ = ()


def element(tag: str, *parts: str, **attributes: str) -> Markup:
    """Return an element with `parts` inside: `Markup` as it is, all other text escaped.

    An underscore at the end of an attribute's name is dropped, others stand for hyphens.

    >>> element("p", "1 < 2, ", element("b", "so"), class_="note", aria_label='"')
    '<p class="note" aria-label="&quot;">1 &lt; 2, <b>so</b></p>'
    """
    named = "".join(
        f' {name.rstrip("_").replace("_", "-")}="{html.escape(_printable(value))}"'
        for name, value in attributes.items()
    )
    if tag in _VOID:
        return Markup(f"<{tag}{named}>")
    return Markup(f"<{tag}{named}>{joined(parts)}</{tag}>")


def joined(parts: Iterable[str]) -> Markup:
    """Return `parts` one after the other, escaped unless they are markup.

    >>> joined(["a & ", Markup("<i>b</i>")])
    'a &amp; <i>b</i>'
    """
    texts = (part if isinstance(part, Markup) else html.escape(_printable(part)) for part in parts)
    return Markup("".join(texts))


def _printable(text: str) -> str:
    """Return `text` with a mark in the place of what no file can hold, such as half a surrogate pair."""
    return text.encode("utf-8", "replace").decode("utf-8").replace("\0", "\ufffd")
