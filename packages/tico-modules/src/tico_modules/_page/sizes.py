"""Where the bytes are, and how many bits the weights have."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import attrs

from tico_modules._facts.model_facts import ModelFacts
from tico_modules._page.charts import Axis, columns, figure, framed, grid_of, svg, thinned
from tico_modules._page.markup import Markup, element, joined
from tico_modules._page.numbers import bytes_text, plural, share_text
from tico_modules._page.rows import Row
from tico_modules._page.tables import bar, section, track

_PARTS: Final = 8
_LEAST: Final = 0.001
"""The share of the bytes from which on a part is shown by itself."""


@attrs.frozen(kw_only=True)
class Part:
    """Some of the bytes of a model: of all blocks of a chain, or of a module outside of blocks."""

    name: str
    before: int
    after: int
    packed: int

    @property
    def rest(self) -> int:
        """The bytes that are no codes or scales: what is float, biases, grids."""
        return self.after - self.packed


def sizes(rows: Sequence[Row], model: ModelFacts | None) -> Markup:
    """Return the pictures of bytes and bits."""
    if model is None or not model.before:
        return Markup()
    return section(
        "sizes",
        "Bytes and bits",
        _by_part(rows, model.before, model.after),
        *_by_format(rows),
        *_bits_over_depth(rows),
    )


def _by_part(rows: Sequence[Row], before: int, after: int) -> Markup:
    parts = list(_parts(rows, before, after))
    largest = max((part.before for part in parts), default=0) or 1
    items = joined(_part(part, largest) for part in parts)
    text = (
        f"{bytes_text(before)} became {bytes_text(after)}. The grey bar is the size in floating"
        " point; in it lies what codes and scales take, and what else there is, such as float weights."
    )
    keys = element(
        "p",
        element("span", "codes and scales", class_="key a"),
        element("span", "float and other", class_="key b"),
        class_="legend",
    )
    return figure("Bytes by part", text, keys, element("ul", items, class_="bars"))


def _part(part: Part, largest: int) -> Markup:
    packed, rest, before = part.packed / largest, part.rest / largest, part.before / largest
    bars = (bar(before, "outline"), bar(packed, "a"), bar(rest, "b", start=packed))
    number = f"{bytes_text(part.before)} → {bytes_text(part.after)}"
    return element("li", element("code", part.name), element("span", number, class_="number"), track(*bars))


def _parts(rows: Sequence[Row], before: int, after: int) -> Iterator[Part]:
    """Yield the largest parts, in the order of the model, and then what is left together."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        above = row.block.rpartition(".")[0] if row.block else row.line.path
        found.setdefault(above or "blocks", []).append(row)
    made = {name: _sum(_part_name(name, own), own) for name, own in found.items()}
    largest = sorted(made, key=lambda name: -made[name].before)[:_PARTS]
    kept = {name for name in largest if made[name].before >= _LEAST * before}
    shown = [part for name, part in made.items() if name in kept and (part.before or part.after)]
    yield from shown
    before -= sum(part.before for part in shown)
    after -= sum(part.after for part in shown)
    packed = sum(p.packed for name, p in made.items() if name not in kept)
    if before > 0 or after > 0:
        yield Part(name="everything else", before=max(before, 0), after=max(after, 0), packed=packed)


def _part_name(name: str, rows: Sequence[Row]) -> str:
    blocks = len({row.block for row in rows if row.block})
    return f"{name} ({plural(blocks, 'block')})" if blocks else name


def _sum(name: str, rows: Sequence[Row]) -> Part:
    return Part(
        name=name,
        before=sum(row.size.before or 0 for row in rows),
        after=sum(row.size.after for row in rows),
        packed=sum(row.size.packed for row in rows),
    )


def _by_format(rows: Sequence[Row]) -> Iterator[Markup]:
    """Yield how many weights each format has."""
    weights: Counter[str] = Counter()
    modules: Counter[str] = Counter()
    for row in rows:
        if row.size.weights:
            name = row.line.weight.removesuffix(", codes kept")
            weights[name] += row.size.weights
            modules[name] += 1
    whole = sum(weights.values())
    if whole:
        items = joined(_format(name, count, whole, modules) for name, count in weights.most_common(_PARTS))
        text = "The share of all weights with codes that each format has."
        yield figure("Weights by format", text, element("ul", items, class_="bars"))


def _format(name: str, count: int, whole: int, modules: Mapping[str, int]) -> Markup:
    number = f"{share_text(count, whole)}, {plural(modules[name], 'module')}"
    share = track(bar(count / whole, "a"))
    return element("li", element("code", name), element("span", number, class_="number"), share)


def _bits_over_depth(rows: Sequence[Row]) -> Iterator[Markup]:
    """Yield the mean bits of each block, where there are several."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        if row.size.weights:
            blocks.setdefault(row.block or row.line.path, []).append(row)
    names = list(blocks)
    if len(names) < 2:
        return
    each = [8 * _packed(own) / sum(row.size.weights for row in own) for own in blocks.values()]
    bits = [value for value in thinned(each, lowest=False)[1] if value is not None]
    axis = Axis.around(bits, zero=True)
    title = "Bits per weight over depth"
    text = f"The mean of each block, scales included: from {min(each):.2f} to {max(each):.2f}."
    text += " Of neighbours the highest is shown." if len(bits) < len(each) else ""
    shapes = joined([grid_of(axis, len(bits)), columns(bits, axis)])
    drawing = svg(title, text, shapes, width=len(bits))
    yield figure(title, text, framed(axis, "bits", drawing, (names[0], names[-1])))


def _packed(rows: Sequence[Row]) -> int:
    return sum(row.size.packed for row in rows)
