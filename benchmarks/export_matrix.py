"""What each target makes of each model and scheme: decibels against the model and their bound, or a refusal.

Refusals stand below the table; ``13<25`` is a bound that the runtime of this machine has missed, which is
refused too. Runtimes live in environments of their own: what other runs have recorded for other cells stays
in the file. A cell of a runtime that is not installed says which nox session has it. The last table is that
of docs/reference/export-formats.md, which a test compares with the recorded one.

    python benchmarks/export_matrix.py [--models NAME …] [--schemes NAME …] [--targets NAME …] [--result FILE]
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, TypeAlias

import recorded
from export_cells import MODELS, TARGETS, cell, reason
from export_models import SCHEMES, converted
from tico_config import TicoError

Cells: TypeAlias = dict[tuple[str, str], str]
"""What came of a row, ``model, scheme``, and a target: figures, or the reason of a refusal."""

_FIGURES: Final = re.compile(r"(inf|-?\d+)[/<](inf|\d+)")
_NOT_RUN: Final = "not run"
_TITLE: Final = "Decibels against the model, and the bound"
_SHORT: Final = "The least decibels of the models that are taken, and how many of them are, if not all"


def row(subject: str, scheme: str, targets: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what came of each of the targets."""
    try:
        model = converted(subject, scheme)
    except TicoError as error:
        yield from ((each, reason(error)) for each in targets)
        return
    for each in targets:
        yield each, cell(model, subject, each)


def read(path: Path) -> Cells:
    """Return what an earlier run has recorded at `path`; nothing where there is no such file."""
    if not path.exists():
        return {}
    table = recorded.from_json(path.read_text(encoding="utf-8")).tables[0]
    reasons = dict(each.split(" ", 1) for each in table.notes)
    return {
        (line.name, column): reasons.get(text, text)
        for line in table.rows
        for column, text in zip(table.columns, line.cells, strict=True)
    }


def tell(out: recorded.Recording, cells: Cells) -> None:
    """Print the table with the reasons below it, and the short one."""
    targets = [each for each in TARGETS if any(column == each for _, column in cells)]
    every = [f"{subject}, {scheme}" for subject in MODELS for scheme in SCHEMES]
    names = [each for each in every if any(name == each for name, _ in cells)]
    reasons: list[str] = []
    out.table(_TITLE, *targets, width=30)
    for name in names:
        out.row(name, *(_shortened(cells.get((name, each), _NOT_RUN), reasons) for each in targets))
    for number, text in enumerate(reasons, 1):
        out.note(f"[{number}] {text}")
    out.table(_SHORT, *targets, width=16)
    for scheme in SCHEMES:
        rows = [name for name in names if name.partition(", ")[2] == scheme]
        if rows:
            out.row(
                scheme, *(least([cells.get((name, each), _NOT_RUN) for name in rows]) for each in targets)
            )
    print(f"\n{markdown(out.tables[-1])}")


def markdown(table: recorded.Table) -> str:
    """Return `table` as Markdown, as the page has it."""
    lines = [("scheme", *table.columns), ("---",) * (1 + len(table.columns))]
    return "\n".join(
        f"| {' | '.join(each)} |" for each in [*lines, *((row.name, *row.cells) for row in table.rows)]
    )


def is_figures(text: str) -> bool:
    """Whether a cell has decibels and a bound, met or missed."""
    return _FIGURES.fullmatch(text) is not None


def _shortened(text: str, reasons: list[str]) -> str:
    if is_figures(text) or text.startswith(("runtimes(", "not ")):
        return text
    if text not in reasons:
        reasons.append(text)
    return f"[{reasons.index(text) + 1}]"


def least(cells: Sequence[str]) -> str:
    """Return the least decibels among cells that are taken, and how many are; or what there is instead.

    >>> least(["inf/80", "53/41", "it takes weights of int8"]), least(["it takes weights of int8"])
    ('53 (2 of 3)', 'refused')
    >>> least(["13<25", "14<25"]), least(["runtimes(openvino)", "it takes weights of int8"])
    ('missed', 'runtimes(openvino)')
    >>> least(["inf/80", "not run"]), least(["not run"])
    ('inf', 'not run')
    """
    known = [text for text in cells if text != _NOT_RUN]
    found = [each[1] for text in known if "/" in text and (each := _FIGURES.fullmatch(text))]
    if found:
        return min(found, key=float) + (f" ({len(found)} of {len(known)})" if len(found) < len(known) else "")
    sessions = [text for text in known if text.startswith("runtimes(")]
    refused = next(iter(sessions), "refused") if known else _NOT_RUN
    return "missed" if any(map(is_figures, known)) else refused


def main() -> None:
    """Run the cells that were asked for, and print all that are known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    for name, known in (("models", MODELS), ("schemes", SCHEMES), ("targets", TARGETS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known))
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cells: Cells = {}
    for subject in options.models:
        for scheme in options.schemes:
            for target, text in row(subject, scheme, options.targets):
                cells[f"{subject}, {scheme}", target] = text
            print(f"{subject}, {scheme}", file=sys.stderr, flush=True)
    with recorded.recording(options.result, recorded.commands_of(options.result)) as out:
        tell(out, read(options.result) | cells)


if __name__ == "__main__":
    main()
