"""Tables that scroll by themselves where they are wider than the window."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from tico_modules._page.markup import Markup, element, joined


def table(caption: str, heads: Sequence[str], rows: Iterable[Sequence[str]], *, class_: str = "") -> Markup:
    """Return a table whose first cells are the heads of their rows.

    >>> table("Sizes", ["part", "bytes"], [["head", "12"]]).count("<th scope=")
    3
    """
    head = element("thead", element("tr", *(element("th", each, scope="col") for each in heads)))
    body = element("tbody", joined(map(_row, rows)))
    inside = element("table", element("caption", caption), head, body, class_=class_)
    return element("div", inside, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _row(cells: Sequence[str]) -> Markup:
    first, *others = cells
    return element("tr", element("th", first, scope="row"), *(element("td", each) for each in others))


def section(name: str, title: str, *parts: str) -> Markup:
    """Return a section with a heading; nothing where `parts` are empty."""
    filled = [part for part in parts if part]
    if not filled:
        return Markup()
    heading = element("h2", title, id=f"{name}-title")
    return element("section", heading, *filled, id=name, aria_labelledby=f"{name}-title")


def bar(share: float, kind: str = "a", *, start: float = 0.0) -> Markup:
    """Return a bar over `share` of its place, from `start` on.

    >>> bar(0.25)
    '<span class="bar a" style="left:0%;width:25%"></span>'
    """
    return element("span", class_=f"bar {kind}", style=f"left:{100 * start:.4g}%;width:{100 * share:.4g}%")


def track(*bars: Markup) -> Markup:
    """Return the place in which bars lie; their numbers are written beside it."""
    return element("span", *bars, class_="track", aria_hidden="true")
