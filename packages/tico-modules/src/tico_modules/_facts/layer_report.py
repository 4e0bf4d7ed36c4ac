"""One line of a report, and its JSON."""

from __future__ import annotations

from types import NoneType
from typing import Final

import attrs

from tico_config import ArtifactError, Problem

SQNR: Final = "weight SQNR dB"
"""The figure that says by how many dB a weight exceeds what its codes change of it."""


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


_TEXTS = ("path", "module", "algorithm", "weight", "activation", "reason")


def line_values(line: LayerReport) -> dict[str, object]:
    """Return a line as values for JSON.

    >>> line_values(LayerReport(path="fc", module="Linear", algorithm="gptq", bits=4))["bits"]
    4
    """
    return attrs.asdict(line)


def parse_lines(rows: object) -> tuple[LayerReport, ...]:
    """Return the lines for which `line_values` gave `rows`.

    Raises:
        ArtifactError: they are something else.
    """
    if not isinstance(rows, list):
        raise not_a_report(rows)
    return tuple(map(_parse_layer, rows))


def not_a_report(value: object) -> ArtifactError:
    """Return the error that `value` is no part of a report."""
    return ArtifactError(Problem(field="report", value=value, expected="JSON as Report.to_json() gives it"))


def _parse_layer(row: object) -> LayerReport:
    match row:
        case {"figures": list(figures), "bits": bits, "group_size": size, "seconds": seconds, **rest}:
            pass
        case _:
            raise not_a_report(row)
    texts = {str(name): str(text) for name, text in rest.items() if isinstance(text, str)}
    numbers = isinstance(seconds, float | int) and all(
        type(count) in (int, NoneType) for count in (bits, size)
    )
    if rest.keys() != set(_TEXTS) or texts.keys() != rest.keys() or not numbers:
        raise not_a_report(row)
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
            raise not_a_report(pair)
