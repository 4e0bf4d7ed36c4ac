"""Which parts of a quantized model hurt: each kind, block and role left out, and alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

from tico_modules._page.comparison import Ablated, AblatedGroup
from tico_modules._page.markup import Markup, element
from tico_modules._page.numbers import plural
from tico_modules._page.tables import bar, section, table, track

_LISTED: Final = 8
_TITLES: Final = {"kind": "Weights and activations", "block": "Blocks", "role": "Roles"}


def ablated(ablation: Ablated | None) -> Markup:
    """Return what `ablation` has found."""
    if ablation is None:
        return Markup()
    text = (
        f"Over {ablation.rows:,} rows of the output the mean KL divergence is {ablation.kl:.4g} nats with"
        f" everything quantized, and {ablation.rest:.4g} with everything in float. Alone: with nothing else"
        " quantized. Gain: by how much it falls with just these parts in float."
    )
    parts = [element("p", text), *_worst(ablation), *_tables(ablation)]
    return section("ablated", "Which parts hurt", *parts)


def _worst(ablation: Ablated) -> Iterator[Markup]:
    roles = [line for line in ablation.lines if line.by == "role"]
    worst = sorted(roles, key=lambda line: (-line.alone, line.name))[:_LISTED]
    if worst:
        highest = max(worst[0].alone, 0.0) or 1.0
        yield element("h3", "The worst roles, alone")
        yield element("ol", *(_listed(line, highest) for line in worst), class_="worst")


def _listed(line: AblatedGroup, highest: float) -> Markup:
    share = min(1.0, max(0.0, line.alone / highest))
    number = element("span", f"{line.alone:.3g}", class_="number")
    what = element("span", f"{line.kind}, {plural(line.parts, 'part')}", class_="what")
    return element("li", element("code", line.name), number, track(bar(share, "bad")), what)


def _tables(ablation: Ablated) -> Iterator[Markup]:
    for by, title in _TITLES.items():
        lines = [line for line in ablation.lines if line.by == by]
        if lines:
            inside = table(f"{title}, in nats", *_cells(lines, ablation.kl), class_="numbers")
            yield element("details", element("summary", f"{title} as numbers"), inside)


def _cells(lines: Sequence[AblatedGroup], whole: float) -> tuple[Sequence[str], list[Sequence[str]]]:
    heads = ("part", "kind", "parts", "alone", "left out", "gain")
    rows: list[Sequence[str]] = [
        (
            element("code", line.name or "the model itself"),
            line.kind,
            f"{line.parts:,}",
            f"{line.alone:.4g}",
            f"{line.without:.4g}",
            f"{whole - line.without:+.2g}",
        )
        for line in lines
    ]
    return heads, rows
