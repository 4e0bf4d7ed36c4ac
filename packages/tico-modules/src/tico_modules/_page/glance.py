"""What a page says at first sight."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tico_modules._facts.model_facts import ModelFacts
from tico_modules._page.comparison import Compared
from tico_modules._page.markup import Markup, element
from tico_modules._page.numbers import bytes_text, count_text, plural, ratio_text, share_text
from tico_modules._page.rows import Row
from tico_modules._page.tables import section


def at_a_glance(rows: Sequence[Row], model: ModelFacts | None, comparison: Compared | None) -> Markup:
    """Return the few numbers that say what has become of the model."""
    tiles = [*_of_model(model), *_of_rows(rows), *_of_comparison(comparison)]
    return section("glance", "At a glance", element("dl", *tiles, class_="tiles"))


def _tile(name: str, value: str, more: str) -> Markup:
    return element("div", element("dt", name), element("dd", element("strong", value)), element("dd", more))


def _of_model(model: ModelFacts | None) -> Iterator[Markup]:
    if model is None:
        return
    yield _tile("Size", bytes_text(model.after), _share_of(model))
    if model.bits is not None:
        text = "with scales and zero points"
        text += f"; {8 * model.after / model.parameters:.2f} over the whole model" if model.parameters else ""
        yield _tile("Bits per quantized weight", f"{model.bits:.2f}", text)
    if model.parameters:
        told = f"{count_text(sum(size.weights for size in model.sizes))} of them as codes"
        yield _tile("Parameters", count_text(model.parameters), told)


def _share_of(model: ModelFacts) -> str:
    if model.before is None:
        return "codes, scales and all else"
    return f"of {bytes_text(model.before)} in floating point: {share_text(model.after, model.before)}"


def _of_rows(rows: Sequence[Row]) -> Iterator[Markup]:
    left = [row for row in rows if row.is_left]
    size, whole = sum(row.size.after for row in left), sum(row.size.after for row in rows)
    more = f"of {len(rows):,} have neither codes nor grids; they take {share_text(size, whole)} of the bytes"
    yield _tile("Left in float", plural(len(left), "module"), more)
    known = [(row.sqnr, row.line.path) for row in rows if row.sqnr is not None]
    if known:
        lowest, path = min(known)
        yield _tile("Lowest weight SQNR", f"{ratio_text(lowest)} dB", path)


def _of_comparison(comparison: Compared | None) -> Iterator[Markup]:
    if comparison is not None:
        more = f"of {plural(comparison.rows, 'row')} of the output have their largest logit where it was"
        yield _tile("Same first choice", share_text(comparison.agreement, 1), more)
        yield _tile("KL divergence", f"{comparison.kl:.3g}", "nats, from the float model's output")
