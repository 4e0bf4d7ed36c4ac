"""The conversions that a model has been through."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Final

from tico_modules._facts.model_facts import ModelFacts, RunFacts
from tico_modules._page.charts import Axis, columns, figure, framed, grid_of, svg, thinned
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import plural
from tico_modules._page.rows import Row
from tico_modules._page.tables import bar, section, track

_TOKENS: Final = "tokens"
_NAMED: Final = 5


def runs(model: ModelFacts | None, rows: Sequence[Row]) -> Markup:
    """Return what was done, oldest first, with what it started from."""
    if model is None or not model.runs:
        return Markup()
    longest = max(run.seconds for run in model.runs)
    items = [_run(run, longest) for run in model.runs]
    done = element("ol", *items, class_="runs")
    return section("runs", "What was done", done, *_tokens(rows), *_slowest(rows))


def _run(run: RunFacts, longest: float) -> Markup:
    told = [plural(run.calls, "call") + " with data" if run.calls else "no data"]
    told += [f"{run.seconds:.1f} s in convert"] if run.seconds else []
    drawn = [track(bar(run.seconds / longest, "a"))] if longest else []
    return element(
        "li",
        element("strong", run.name or "a conversion"),
        element("span", ", ".join(told), class_="number"),
        *drawn,
        element("details", element("summary", "Config, fingerprints and versions"), *_details(run)),
    )


def _details(run: RunFacts) -> Iterator[Markup]:
    config = json.dumps(json.loads(run.config), indent=2) if run.config else "not known"
    yield element("pre", config, tabindex="0")
    named = {"model": run.model, "data": run.data, **dict(run.versions)}
    pairs = (
        part
        for name, text in named.items()
        for part in (element("dt", name), element("dd", text or "not known"))
    )
    yield element("dl", *pairs, class_="facts")


def _tokens(rows: Sequence[Row]) -> Iterator[Markup]:
    """Yield how much the layers have read, where algorithms tell."""
    known = [row.figures[_TOKENS] for row in rows if _TOKENS in row.figures]
    if known:
        fewest, most = min(known), max(known)
        read = f"{most:,.0f}" if fewest == most else f"{fewest:,.0f} to {most:,.0f}"
        yield element("p", f"Layers have read {read} tokens of calibration data.")


def _slowest(rows: Sequence[Row]) -> Iterator[Markup]:
    known = [row for row in rows if row.seconds]
    if not known:
        return
    whole = sum(row.seconds for row in known)
    slowest = sorted(known, key=lambda row: -row.seconds)[:_NAMED]
    names = "; ".join(f"{row.line.path} {row.seconds:.2f} s" for row in slowest)
    text = f"What the algorithms took for each module, in the order of the model: {whole:.1f} s together."
    text += f" The slowest: {names}."
    values = [value or 0.0 for value in thinned([row.seconds for row in known], lowest=False)[1]]
    text += " Of neighbours the slowest is shown." if len(values) < len(known) else ""
    axis, title = Axis.around(values, zero=True), "Seconds over depth"
    drawing = svg(title, text, joined([grid_of(axis, len(values)), columns(values, axis)]), width=len(values))
    ends = (known[0].line.path, known[-1].line.path)
    yield figure(title, text, framed(axis, "s", drawing, ends))
