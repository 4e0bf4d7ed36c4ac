"""What a page says of each line of a report, with what older runs and the model itself tell of it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import attrs

from tico_modules._facts.layer_report import SQNR, LayerReport
from tico_modules._facts.model_facts import LayerSize, ModelFacts

_FIRST_NUMBER: Final = re.compile(r"(?:.*?\.)??\d+(?=\.|$)")
_NUMBERS: Final = re.compile(r"(?<![^.])\d+(?![^.])")
LOSS: Final = "loss"
NEAREST: Final = "loss if rounded to nearest"
_SHARE: Final = "share of parameters"


@attrs.frozen(kw_only=True)
class Row:
    """One line with all that is known of it.

    Attributes:
        line: the newest line.
        algorithms: what has changed the module, oldest first; the last one has the newest line.
        figures: the newest value of each figure.
        seconds: of all runs together.
        size: the bytes of the module.
    """

    line: LayerReport
    algorithms: tuple[str, ...]
    figures: Mapping[str, float]
    seconds: float
    size: LayerSize

    @property
    def block(self) -> str:
        """The path up to its first number, such as ``model.layers.3``; empty where there is none."""
        match = _FIRST_NUMBER.match(self.line.path)
        return "" if match is None else match.group()

    @property
    def role(self) -> str:
        """The path with a mark for each number: what alike modules of all blocks share."""
        return _NUMBERS.sub("#", self.line.path)

    @property
    def is_float(self) -> bool:
        """Whether the module has neither codes nor grids."""
        return self.line.weight == "float" and self.line.activation == "float"

    @property
    def is_left(self) -> bool:
        """Whether the module is float and could be something else: it has bytes, or a reason."""
        return self.is_float and bool(self.size.after or self.line.reason)

    @property
    def sqnr(self) -> float | None:
        """By how many dB the weight exceeds what its codes change."""
        return self.figures.get(SQNR)

    @property
    def gain(self) -> float | None:
        """The loss as a share of what rounding to nearest would lose; None where either is not known."""
        nearest = self.figures.get(NEAREST, 0.0)
        return self.figures[LOSS] / nearest if LOSS in self.figures and nearest else None


def rows_of(layers: Sequence[LayerReport], model: ModelFacts | None) -> tuple[Row, ...]:
    """Return a row for each line.

    >>> line = LayerReport(path="layers.3.fc", module="Linear", algorithm="gptq", figures=(("loss", 1.0),))
    >>> [(row.block, row.role, row.figures) for row in rows_of([line], None)]
    [('layers.3', 'layers.#.fc', {'loss': 1.0})]
    """
    sizes = {} if model is None else {size.path: size for size in model.sizes}
    before: dict[str, list[LayerReport]] = {}
    for line in () if model is None else model.earlier:
        before.setdefault(line.path, []).append(line)
    return tuple(_row(line, before.get(line.path, []), sizes) for line in layers)


def _is_changed(line: LayerReport) -> bool:
    """Whether a line says that its algorithm has done something to the module."""
    return (line.weight, line.activation) != ("float", "float") or bool({*dict(line.figures)} - {_SHARE})


def _row(line: LayerReport, before: Sequence[LayerReport], sizes: Mapping[str, LayerSize]) -> Row:
    all_lines = (*before, line)
    return Row(
        line=line,
        algorithms=tuple(dict.fromkeys(each.algorithm for each in (*filter(_is_changed, before), line))),
        figures={name: value for each in all_lines for name, value in each.figures},
        seconds=sum(each.seconds for each in all_lines),
        size=sizes.get(line.path, LayerSize(path=line.path, before=0, after=0)),
    )
