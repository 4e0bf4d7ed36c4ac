"""The runs that modules keep, and the report of a model made of them."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping

import attrs
from torch import nn

from tico_modules._facts.layer_report import LayerReport
from tico_modules._record.measuring import measure
from tico_modules._record.report import Report
from tico_modules._record.run import Run
from tico_modules._tree.answers import HISTORY, shares_line, stands_beside
from tico_modules._tree.edit import Edit
from tico_modules._tree.module_tree import child_path, children, named_modules
from tico_modules._tree.requirements import require_module


def remember(modules: Iterable[nn.Module], run: Run, edit: Edit | None = None) -> None:
    """Keep `run` with each of `modules`, after the runs they have; it passes to copies and to files.

    With an `edit`, that can be undone.
    """
    change = edit or Edit()
    for module in modules:
        change.set_attribute(module, HISTORY, (*runs_of(module), run))


def runs_of(module: nn.Module) -> tuple[Run, ...]:
    """Return the runs kept with `module`, oldest first."""
    kept: tuple[Run, ...] = vars(module).get(HISTORY, ())
    return kept


def report(model: nn.Module) -> Report:
    """Return a report with a line for every module of a converted model.

    The line is from the newest run that has one for the module. A module without any is listed as float, with
    the reason. What is known of the model as a whole is told beside the lines. `model` may be a part of the
    model that was converted, or hold it as a part: the paths in the report are those in `model`.

    Raises:
        UnsupportedError: `model` is no module.

    >>> report(nn.Sequential(nn.Linear(2, 2))).layers[0].reason
    'no algorithm was run on it'
    """
    require_module(model)
    known: dict[str, LayerReport] = {}
    earlier: list[LayerReport] = []
    operators = dict.fromkeys(_find_operator_paths(model))
    places = {path for path, _ in named_modules(model)} | operators.keys()
    runs = _sort_runs(model)
    for run, paths in runs:
        graphs = [path for path in paths if "operator_paths" in vars(model.get_submodule(path))]
        newer = {layer.path: layer for layer in _move_lines(run.report, graphs or paths, places, graphs)}
        earlier += [known[path] for path in known if path in newer and known[path].algorithm]
        known |= newer
    lines = _lines_of(model, known, operators)
    return Report(layers=tuple(lines), model=measure(model, [run for run, _ in runs], lines, earlier))


def _lines_of(
    model: nn.Module, known: Mapping[str, LayerReport], operators: Collection[str]
) -> list[LayerReport]:
    """Return the lines that are `known`, and those of modules without any, in the order of the model."""
    lines: list[LayerReport] = []
    whole: list[str] = []
    for path, module in named_modules(model):
        # What stands beside a module has the line of that module, or one of its own.
        if path in known and path not in operators:
            lines.append(known[path])
        elif not stands_beside(module) and not children(module) and not path.startswith(tuple(whole)):
            kind = type(module).__name__
            lines.append(
                LayerReport(path=path, module=kind, algorithm="", reason="no algorithm was run on it")
            )
        if runs_of(module) or stands_beside(module):
            whole.append(f"{path}." if path else "")
    lines += [known[path] for path in operators if path in known]
    return lines


def _find_operator_paths(model: nn.Module) -> Iterator[str]:
    """Yield the paths of operators that have lines of their own, in the graphs that `model` holds."""
    for path, module in named_modules(model):
        operators: tuple[str, ...] = vars(module).get("operator_paths", ())
        yield from (child_path(path, name) for name in operators)


def _sort_runs(model: nn.Module) -> list[tuple[Run, list[str]]]:
    """Return the runs that modules of `model` keep, oldest first, each with the paths of these modules."""
    runs: dict[int, Run] = {}
    ages: dict[int, int] = {}
    paths: dict[int, list[str]] = {}
    for path, module in named_modules(model):
        for age, run in enumerate(runs_of(module)):
            runs[id(run)] = run
            ages[id(run)] = max(age, ages.get(id(run), 0))
            served = path.rpartition(".")[0] if shares_line(module) else path
            paths.setdefault(id(run), []).append(served)
    return [(runs[key], paths[key]) for key in sorted(runs, key=lambda key: ages[key])]


def _move_lines(run: Report, paths: list[str], places: set[str], graphs: list[str]) -> list[LayerReport]:
    """Return the lines of `run` with the paths that they have in a model that has modules at `places`.

    Of the changes that would explain why modules of the run stand at `paths` now, it takes the one that
    explains most of them, and then the one that finds a place for most lines. The lines of a run that a
    graph keeps, which stands at the only path in `graphs`, are below that path.
    """
    # A few modules are enough to tell, and each is compared with every line.
    changes = {
        change for path in paths[:16] for line in run.layers for change in _find_changes(line.path, path)
    }
    found = [
        [moved for line in run.layers for moved in _move_line(line, *change) if moved.path in places]
        for change in [("", path) for path in graphs] or [("", ""), *sorted(changes)]
    ]
    standing = set(paths)
    return max(found, key=lambda lines: (sum(line.path in standing for line in lines), len(lines)))


def _move_line(line: LayerReport, gone: str, added: str) -> Iterator[LayerReport]:
    if line.path == gone or line.path.startswith(f"{gone}." if gone else ""):
        rest = line.path.removeprefix(gone).removeprefix(".")
        yield attrs.evolve(line, path=child_path(added, rest) if rest else added)


def _find_changes(old: str, new: str) -> Iterator[tuple[str, str]]:
    """Yield the prefix to take away and the one to add that make the path `new` of `old`."""
    if old == new:
        yield "", ""
    elif not old or new.endswith(f".{old}"):
        yield "", new.removesuffix(old).removesuffix(".")
    elif not new or old.endswith(f".{new}"):
        yield old.removesuffix(new).removesuffix("."), ""
