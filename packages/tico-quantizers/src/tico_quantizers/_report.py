"""What was done to every module of a model, as values."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

import attrs
from torch import nn
from typing_extensions import Self

from tico_config import ArtifactError, Found, Problem
from tico_quantizers._module_tree import child_path, children, named_modules


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

        Raises:
            ArtifactError: it is not what `to_json` gives.

        >>> Report.from_json(Report().to_json()) == Report()
        True
        """
        try:
            rows: object = json.loads(text)
        except (ValueError, RecursionError):
            rows = None
        if not isinstance(rows, list):
            raise _refused(Found("something else"))
        return cls(layers=tuple(map(_layer, rows)))

    def to_markdown(self) -> str:
        """Return the report as a Markdown table."""
        head = "| module | kind | algorithm | weight | activation | notes |\n|---|---|---|---|---|---|"
        return "\n".join([head, *map(_row, self.layers)])

    def __str__(self) -> str:
        """Return the Markdown table."""
        return self.to_markdown()


_TEXTS = ("path", "module", "algorithm", "weight", "activation", "reason")


def _layer(row: object) -> LayerReport:
    if not isinstance(row, dict) or row.keys() != {*_TEXTS, "figures"}:
        raise _refused(row)
    texts: dict[str, object] = {name: row[name] for name in _TEXTS}
    figures: object = row["figures"]
    if not isinstance(figures, list) or not all(isinstance(text, str) for text in texts.values()):
        raise _refused(row)
    path, module, algorithm, weight, activation, reason = map(str, texts.values())
    return LayerReport(
        path=path,
        module=module,
        algorithm=algorithm,
        weight=weight,
        activation=activation,
        reason=reason,
        figures=tuple(map(_figure, figures)),
    )


def _figure(pair: object) -> tuple[str, float]:
    match pair:
        case [str(name), float() | int() as value]:
            return name, float(value)
        case _:
            raise _refused(pair)


def _refused(value: object) -> ArtifactError:
    return ArtifactError(Problem(field="report", value=value, expected="JSON as Report.to_json() gives it"))


def _row(layer: LayerReport) -> str:
    notes = [layer.reason] if layer.reason else []
    notes += [f"{name} {value:.4g}" for name, value in layer.figures]
    cells = (layer.path, layer.module, layer.algorithm, layer.weight, layer.activation, "; ".join(notes))
    plain = (" ".join(cell.replace("|", r"\|").split()) for cell in cells)
    return f"| {' | '.join(plain)} |"


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

    The newest run speaks for a module; a module that no run speaks for is listed as float. The model may
    be a part of the one that was converted, or hold it as a part: the paths are those in `model`.

    >>> report(nn.Sequential(nn.Linear(2, 2))).layers[0].reason
    'no algorithm was run on it'
    """
    known: dict[str, LayerReport] = {}
    places = {path for path, _ in named_modules(model)}
    for run, paths in _runs_in_order(model):
        known |= {layer.path: layer for layer in _moved(run, paths, places)}
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


def _runs_in_order(model: nn.Module) -> list[tuple[Report, list[str]]]:
    """Return the runs that modules of `model` keep, oldest first, each with the paths of these modules."""
    runs: dict[int, Report] = {}
    ages: dict[int, int] = {}
    paths: dict[int, list[str]] = {}
    for path, module in named_modules(model):
        for age, run in enumerate(runs_of(module)):
            runs[id(run)] = run
            ages[id(run)] = max(age, ages.get(id(run), 0))
            paths.setdefault(id(run), []).append(path)
    return [(runs[key], paths[key]) for key in sorted(runs, key=lambda key: ages[key])]


def _moved(run: Report, paths: list[str], places: set[str]) -> list[LayerReport]:
    """Return the lines of `run` with the paths that they have in a model that has modules at `places`.

    Of the changes that would explain why modules of the run stand at `paths` now, it takes the one that
    explains most of them, and then the one that finds a place for most lines.
    """
    # A few modules are enough to tell, and each is compared with every line.
    changes = {change for path in paths[:16] for line in run.layers for change in _changes(line.path, path)}
    found = [
        [moved for line in run.layers for moved in _line_moved(line, *change) if moved.path in places]
        for change in [("", ""), *sorted(changes)]
    ]
    standing = set(paths)
    return max(found, key=lambda lines: (sum(line.path in standing for line in lines), len(lines)))


def _line_moved(line: LayerReport, gone: str, added: str) -> Iterator[LayerReport]:
    if line.path == gone or line.path.startswith(f"{gone}." if gone else ""):
        rest = line.path.removeprefix(gone).removeprefix(".")
        yield attrs.evolve(line, path=child_path(added, rest) if rest else added)


def _changes(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Yield the prefix to take away and the one to add that make the path `new` of `old`."""
    if old == new:
        yield "", ""
    elif not old or new.endswith(f".{old}"):
        yield "", new.removesuffix(old).removesuffix(".")
    elif not new or old.endswith(f".{new}"):
        yield old.removesuffix(new).removesuffix("."), ""
