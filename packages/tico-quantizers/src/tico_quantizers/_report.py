"""What was done to every module of a model, as values."""

from __future__ import annotations

import json
from collections.abc import Iterable

import attrs
from torch import nn
from typing_extensions import Self

from tico_quantizers._module_tree import children, named_modules


@attrs.frozen(kw_only=True)
class LayerReport:
    """What one algorithm did to one module, or why it left the module alone.

    `weight` and `activation` describe the grids, "float" where there is none. `figures` are the
    algorithm's own, for example ``("loss", 0.12)``.
    """

    path: str
    module: str
    algorithm: str
    weight: str = "float"
    activation: str = "float"
    reason: str = ""
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

    def to_json(self) -> str:
        """Return the report as a JSON array with one object a line of the report."""
        return json.dumps([attrs.asdict(layer) for layer in self.layers])

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Return the report that `to_json` gave `text` for.

        >>> Report.from_json(Report().to_json()) == Report()
        True
        """
        rows: list[dict[str, str]] = json.loads(text)
        figures: list[dict[str, list[tuple[str, float]]]] = json.loads(text)
        return cls(
            layers=tuple(
                LayerReport(
                    path=row["path"],
                    module=row["module"],
                    algorithm=row["algorithm"],
                    weight=row["weight"],
                    activation=row["activation"],
                    reason=row["reason"],
                    figures=tuple((str(name), float(value)) for name, value in numbers["figures"]),
                )
                for row, numbers in zip(rows, figures, strict=True)
            )
        )

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        head = "| module | kind | algorithm | weight | activation | notes |\n|---|---|---|---|---|---|"
        return "\n".join([head, *map(_row, self.layers)])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


def _row(layer: LayerReport) -> str:
    notes = [layer.reason] if layer.reason else []
    notes += [f"{name} {value:.4g}" for name, value in layer.figures]
    cells = (layer.path, layer.module, layer.algorithm, layer.weight, layer.activation, "; ".join(notes))
    return f"| {' | '.join(cells)} |"


_HISTORY = "runs"


def remember(modules: Iterable[nn.Module], run: Report) -> None:
    """Keep `run` with each of `modules`, after the runs that they already keep."""
    for module in modules:
        vars(module)[_HISTORY] = (*runs_of(module), run)


def runs_of(module: nn.Module) -> tuple[Report, ...]:
    """Return the runs kept with `module`, oldest first."""
    kept: tuple[Report, ...] = vars(module).get(_HISTORY, ())
    return kept


def report(model: nn.Module) -> Report:
    """Return what was done to every module of a converted model, the untouched ones with the reason.

    The newest run speaks for a module; a module that no run speaks for is listed as float.

    >>> report(nn.Sequential(nn.Linear(2, 2))).layers[0].reason
    'no algorithm was run on it'
    """
    runs: dict[int, Report] = {}
    for _, module in named_modules(model):
        runs |= {id(run): run for run in runs_of(module)}
    known = {layer.path: layer for run in runs.values() for layer in run.layers}
    lines: list[LayerReport] = []
    whole: list[str] = []
    for path, module in named_modules(model):
        if path in known:
            lines.append(known[path])
        elif not children(module) and not path.startswith(tuple(whole)):
            kind = type(module).__name__
            lines.append(
                LayerReport(path=path, module=kind, algorithm="", reason="no algorithm was run on it")
            )
        if runs_of(module):
            whole.append(f"{path}." if path else "")
    return Report(layers=tuple(lines))
