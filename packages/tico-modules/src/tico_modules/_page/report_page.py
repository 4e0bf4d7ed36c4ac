"""The page as a whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Final

from tico_modules._facts.layer_report import LayerReport
from tico_modules._facts.model_facts import ModelFacts
from tico_modules._page.ablating import ablated
from tico_modules._page.comparing import compared
from tico_modules._page.comparison import Ablated, Compared, Seen
from tico_modules._page.glance import at_a_glance
from tico_modules._page.grids import codes, points
from tico_modules._page.losses import losses
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.modules import modules
from tico_modules._page.reasons import reasons
from tico_modules._page.roles import roles
from tico_modules._page.rows import rows_of
from tico_modules._page.runs import runs
from tico_modules._page.seeing import seen_points
from tico_modules._page.sizes import sizes


def report_page(
    layers: Sequence[LayerReport],
    model: ModelFacts | None,
    comparison: Compared | None = None,
    ablation: Ablated | None = None,
    seen: Seen | None = None,
) -> str:
    """Return the page of a report, which needs nothing but itself.

    >>> page = report_page([], None)
    >>> page.startswith("<!doctype html>"), "http" in page
    (True, False)
    """
    rows = rows_of(layers, model)
    parts = [
        at_a_glance(rows, model, comparison),
        compared(comparison),
        ablated(ablation),
        losses(rows),
        sizes(rows, model),
        roles(rows),
        reasons(rows),
        codes(model, rows),
        points(model),
        seen_points(seen),
        runs(model, rows),
        modules(rows),
    ]
    title = "Quantization report" if model is None else f"Quantization report: {model.name}"
    body = element(
        "body",
        element("a", "Skip to the table of every module", href="#modules", class_="skip"),
        element("header", element("h1", title), _contents([part for part in parts if part])),
        element("main", *parts),
        element("footer", *_footer(model)),
        element("script", _text("page.js")),
    )
    return f"<!doctype html>\n{element('html', _head(title), body, lang='en')}\n"


def _head(title: str) -> Markup:
    return element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("meta", name="color-scheme", content="light dark"),
        element("link", rel="icon", href="data:,"),
        element("title", title),
        element("style", _text("page.css")),
    )


def _text(name: str) -> Markup:
    """Return the style or the script of a page, which stands beside this module."""
    return Markup(files("tico_modules._page").joinpath(name).read_text(encoding="utf-8"))


_NAMES: Final = {
    "glance": "At a glance",
    "compared": "Against the float model",
    "ablated": "Which parts hurt",
    "losses": "Losses",
    "sizes": "Bytes and bits",
    "roles": "Kinds of modules",
    "float": "Left in float",
    "codes": "Codes",
    "points": "Activations",
    "seen": "Histograms",
    "runs": "What was done",
    "modules": "Every module",
}


def _contents(parts: Sequence[Markup]) -> Markup:
    """Return the links to the sections that are there."""
    links = [
        element("li", element("a", text, href=f"#{name}"))
        for name, text in _NAMES.items()
        if any(f' id="{name}"' in part[:200] for part in parts)
    ]
    return element("nav", element("ul", joined(links)), aria_label="Sections")


def _footer(model: ModelFacts | None) -> Iterator[Markup]:
    versions = dict(model.runs[-1].versions) if model is not None and model.runs else {}
    told = ", ".join(f"{name} {version}" for name, version in versions.items())
    yield element("p", f"Written by tico.quantization. {told}")
