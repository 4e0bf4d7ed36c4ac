"""The rows of a report as a Markdown table."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Final

import attrs

from tico_modules._facts.layer_report import LayerReport
from tico_modules._facts.model_facts import ModelFacts
from tico_modules._page.numbers import bytes_text

_HEAD: Final = "| module | kind | algorithm | weight | activation | notes |\n|---|---|---|---|---|---|"
_MANY: Final = 8
_EXPERT: Final = "ExpertLinear"
_NUMBERED: Final = re.compile(r"(.+)\.(\d+)((?:\.\D[^.]*)*)")
_DIGITS: Final = re.compile(r"\d+")


def markdown_table(layers: Sequence[LayerReport], *, every_expert: bool) -> str:
    """Return a row for each line, or with `every_expert` False for many experts that are alike.

    >>> print(markdown_table([LayerReport(path="fc", module="Linear", algorithm="gptq")], every_expert=True))
    | module | kind | algorithm | weight | activation | notes |
    |---|---|---|---|---|---|
    | fc | Linear | gptq | float | float |  |
    """
    return "\n".join([_HEAD, *(map(_format_row, layers) if every_expert else _rows_of(layers))])


def bytes_sentence(model: ModelFacts) -> str:
    """Return how many bytes and bits there are.

    >>> bytes_sentence(ModelFacts(name="Net", before=4000, after=1000))
    'The model has 1 kB, and 4 kB in floating point.'
    """
    text = f"The model has {bytes_text(model.after)}"
    text += "" if model.before is None else f", and {bytes_text(model.before)} in floating point"
    bits = (
        ""
        if model.bits is None
        else f": {model.bits:.2f} bits a quantized weight, with scales and zero points"
    )
    return f"{text}{bits}."


def _rows_of(layers: Sequence[LayerReport]) -> Iterator[str]:
    """Yield a row for each line, or for many experts that differ in their numbers alone."""
    for key, lines in _runs(layers).items():
        if isinstance(key, int) or len(lines) < _MANY:
            yield from map(_format_row, lines)
        else:
            yield _format_many(lines)


def _runs(layers: Sequence[LayerReport]) -> dict[object, list[LayerReport]]:
    """Return experts that are alike together and all other lines alone, in the order of their firsts."""
    found: dict[object, list[LayerReport]] = {}
    for number, line in enumerate(layers):
        place = _place_of(line)
        alike = place and (place[0], place[2], line.module, line.algorithm, line.weight, line.activation)
        found.setdefault(alike or number, []).append(line)
    return found


def _place_of(line: LayerReport) -> tuple[str, int, str] | None:
    """Return what is before the number of an expert in its path, the number, and what is behind it."""
    match = _NUMBERED.fullmatch(line.path)
    if match is None:
        return None
    before, number, behind = match.groups()
    named = "expert" in before.rpartition(".")[2].lower()
    return (before, int(number), behind) if named or line.module == _EXPERT else None


def _format_many(lines: Sequence[LayerReport]) -> str:
    """Return one row for experts that are alike."""
    places = [place for place in map(_place_of, lines) if place is not None]
    (before, _, behind), numbers = places[0], sorted(number for _, number, _ in places)
    path = f"{before}.{numbers[0]}…{numbers[-1]}{behind} ({len(lines)} experts)"
    reasons = Counter(_DIGITS.sub("#", line.reason) for line in lines if line.reason)
    notes = [f"{count} of {len(lines)}: {reason}" for reason, count in sorted(reasons.items())]
    figures: dict[str, list[float]] = {}
    for name, value in (figure for line in lines for figure in line.figures):
        figures.setdefault(name, []).append(value)
    notes += [f"{name} {min(each):.4g} to {max(each):.4g}" for name, each in figures.items()]
    return _format(attrs.evolve(lines[0], path=path), notes, sum(line.seconds for line in lines))


def _format_row(layer: LayerReport) -> str:
    notes = [layer.reason] if layer.reason else []
    notes += [f"{name} {value:.4g}" for name, value in layer.figures]
    return _format(layer, notes, layer.seconds)


def _format(layer: LayerReport, notes: Sequence[str], seconds: float) -> str:
    notes = [*notes, f"{seconds:.2f} s"] if seconds else notes
    cells = (layer.path, layer.module, layer.algorithm, layer.weight, layer.activation, "; ".join(notes))
    plain = (" ".join(cell.replace("|", r"\|").split()) for cell in cells)
    return f"| {' | '.join(plain)} |"
