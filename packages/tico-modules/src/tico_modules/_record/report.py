"""The report of a conversion, with a line for each module."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Final

import attrs
from typing_extensions import Self

from tico_config import ArtifactError, Found, Problem


@attrs.frozen(kw_only=True)
class LayerReport:
    """One module in a report: the grids that an algorithm gave it, or the reason why it is still float.

    Attributes:
        path: the full path of the module.
        module: the name of its class, or of the operator.
        algorithm: the name of the algorithm; empty where none changed the module.
        weight: a description of the grid of the weight, for example ``uint4 group 64``, or ``float``.
        activation: a description of the grids of its activations, or ``float``.
        reason: the reason why the module, or a part of it, is float.
        bits: the bits of the weight's codes, where the algorithm made codes.
        group_size: the number of columns that share a scale; None where whole rows do, or without codes.
        seconds: the time that the algorithm took for the module, ignored when lines are compared.
        figures: numbers of the algorithm's own, for example ``("loss", 0.12)``.
    """

    path: str
    module: str
    algorithm: str
    weight: str = "float"
    activation: str = "float"
    reason: str = ""
    bits: int | None = None
    group_size: int | None = None
    seconds: float = attrs.field(default=0.0, eq=False)
    figures: tuple[tuple[str, float], ...] = ()


@attrs.frozen(kw_only=True)
class Report:
    """One line for each module that holds weights or computes, the latest for each path.

    >>> line = LayerReport(path="fc", module="Linear", algorithm="gptq", weight="uint4 per row")
    >>> print(Report(layers=(line,)).to_markdown())
    | module | kind | algorithm | weight | activation | notes |
    |---|---|---|---|---|---|
    | fc | Linear | gptq | uint4 per row | float |  |
    """

    layers: tuple[LayerReport, ...] = ()

    def __deepcopy__(self, memo: dict[int, object]) -> Self:
        """Return itself: nothing in it can change."""
        return self

    def without_times(self) -> Self:
        """Return the report with every `seconds` 0, so that the same work gives the same text.

        >>> line = LayerReport(path="fc", module="Linear", algorithm="gptq", seconds=2.0)
        >>> Report(layers=(line,)).without_times().layers[0].seconds
        0.0
        """
        return attrs.evolve(self, layers=tuple(attrs.evolve(layer, seconds=0.0) for layer in self.layers))

    def to_json(self) -> str:
        """Return the report as a JSON array with one object a line of the report."""
        return json.dumps([attrs.asdict(layer) for layer in self.layers])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` wrote as `text`.

        Raises:
            ArtifactError: `text` is not the JSON of a report.

        >>> Report.from_json(Report().to_json()) == Report()
        True
        """
        try:
            rows: object = json.loads(text)
        except (ValueError, RecursionError):
            rows = None
        if not isinstance(rows, list):
            raise _make_error(Found("something else"))
        return cls(layers=tuple(map(_parse_layer, rows)))

    def to_markdown(self, *, every_expert: bool = False) -> str:
        """Return the report as a Markdown table.

        Experts of one list or parameter of which the same was made share a row, with the range of each figure
        and how many each note is about, unless there are few. With `every_expert` each has a row of its own.
        """
        head = "| module | kind | algorithm | weight | activation | notes |\n|---|---|---|---|---|---|"
        rows = map(_format_row, self.layers) if every_expert else _rows_of(self.layers)
        return "\n".join([head, *rows])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


_MANY: Final = 8
_EXPERT: Final = "ExpertLinear"
_NUMBERED: Final = re.compile(r"(.+)\.(\d+)((?:\.\D[^.]*)*)")
_DIGITS: Final = re.compile(r"\d+")
_TEXTS = ("path", "module", "algorithm", "weight", "activation", "reason")


def _parse_layer(row: object) -> LayerReport:
    match row:
        case {"figures": list(figures), "bits": bits, "group_size": size, "seconds": seconds, **rest}:
            pass
        case _:
            raise _make_error(row)
    texts = {str(name): str(text) for name, text in rest.items() if isinstance(text, str)}
    numbers = isinstance(seconds, float | int) and all(
        type(count) in (int, NoneType) for count in (bits, size)
    )
    if rest.keys() != set(_TEXTS) or texts.keys() != rest.keys() or not numbers:
        raise _make_error(row)
    return LayerReport(
        **texts,
        bits=bits,
        group_size=size,
        seconds=float(seconds),
        figures=tuple(map(_parse_figure, figures)),
    )


def _parse_figure(pair: object) -> tuple[str, float]:
    match pair:
        case [str(name), float() | int() as value]:
            return name, float(value)
        case _:
            raise _make_error(pair)


def _make_error(value: object) -> ArtifactError:
    return ArtifactError(Problem(field="report", value=value, expected="JSON as Report.to_json() gives it"))


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
