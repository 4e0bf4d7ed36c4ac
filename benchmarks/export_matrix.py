"""What each target makes of each model and scheme: decibels against the model and their bound, or a refusal.

Refusals stand below the table. Runtimes live in environments of their own: what an earlier run has recorded
for other targets stays in the file. A cell of a runtime that is not installed says which nox session has it.

    python benchmarks/export_matrix.py [--models NAME …] [--schemes NAME …] [--targets NAME …] [--result FILE]
"""

from __future__ import annotations

import argparse
import logging
import re
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, TypeAlias

from torch import nn

import recorded
from export_models import SCHEMES, SUBJECTS, converted
from tico_config import TicoError
from tico_export import (
    GGUF,
    PT2,
    AWQFormat,
    CompressedTensors,
    ExecuTorch,
    ExportTarget,
    GPTQFormat,
    Onnx,
    OpenVINO,
    export,
)

Cells: TypeAlias = dict[tuple[str, str], str]
"""What came of a row, ``model, scheme``, and a target: figures, or the reason of a refusal."""

TARGETS: Final[Mapping[str, ExportTarget]] = {
    "PT2 onnx": PT2(),
    "PT2 xnnpack": PT2(dialect="xnnpack"),
    "PT2 openvino": PT2(dialect="openvino"),
    "PT2 circle": PT2(dialect="circle"),
    "Onnx": Onnx(),
    "OpenVINO": OpenVINO(),
    "ExecuTorch": ExecuTorch(),
    "CompressedTensors": CompressedTensors(),
    "GPTQFormat": GPTQFormat(version=2),
    "AWQFormat": AWQFormat(),
    "GGUF": GGUF(),
}

# Which session has the runtime of a target; the others are in the development environment.
SESSIONS: Final = {
    "OpenVINO": "openvino",
    "ExecuTorch": "xnnpack",
    "GPTQFormat": "gptqmodel",
    "AWQFormat": "gptqmodel",
    "GGUF": "llama_cpp",
}

MODELS: Final = ("linear stack", "convolutions", "encoder", "embedded LLaMA", "Qwen3")

_FIGURES: Final = re.compile(r"(inf|-?\d+)/(inf|\d+)")
_TITLE: Final = "Decibels against the model, and the bound"
_SHORT: Final = "The least decibels of all models that a target takes"


def cell(model: nn.Module, subject: str, target: str) -> str:
    """Return decibels with their bound, why there are none, or the reason of a refusal."""
    given = SUBJECTS[subject]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.xml"
        try:
            result = export(model, path, TARGETS[target], args=given.args, kwargs=dict(given.kwargs))
        except TicoError as error:
            return reason(error)
    if not result.verified:
        return f"runtimes({SESSIONS[target]})" if target in SESSIONS else "not verified"
    return f"{result.sqnr:.0f}/{result.bound:.0f}"


def reason(error: TicoError) -> str:
    """Return the first problem of an error, without the path of its module and without the way out."""
    problem = error.problems[0]
    text = str(problem).partition("; ")[0]
    return text.removeprefix(f"{problem.module}: ")


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
        out.row(name, *(_shortened(cells.get((name, each), "not run"), reasons) for each in targets))
    for number, text in enumerate(reasons, 1):
        out.note(f"[{number}] {text}")
    out.table(_SHORT, *targets, width=16)
    for scheme in SCHEMES:
        rows = [name for name in names if name.partition(", ")[2] == scheme]
        if rows:
            out.row(scheme, *(least([cells.get((name, each), "") for name in rows]) for each in targets))


def _shortened(text: str, reasons: list[str]) -> str:
    if _FIGURES.fullmatch(text) or text.startswith(("runtimes(", "not ")):
        return text
    if text not in reasons:
        reasons.append(text)
    return f"[{reasons.index(text) + 1}]"


def least(cells: Sequence[str]) -> str:
    """Return the least decibels among cells; "refused" where none has any.

    >>> least(["inf/80", "53/41", "it takes weights of int8"]), least(["it takes weights of int8"])
    ('53', 'refused')
    """
    found = [each[1] for text in cells if (each := _FIGURES.fullmatch(text))]
    return min(found, key=float) if found else "refused"


def main() -> None:
    """Run the cells that were asked for, and print all that are known."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    for name, known in (("models", MODELS), ("schemes", SCHEMES), ("targets", TARGETS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known))
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    cells, earlier = read(options.result), recorded.commands_of(options.result)
    for subject in options.models:
        for scheme in options.schemes:
            for target, text in row(subject, scheme, options.targets):
                cells[f"{subject}, {scheme}", target] = text
            print(f"{subject}, {scheme}", file=sys.stderr, flush=True)
    with recorded.recording(options.result, earlier) as out:
        tell(out, cells)


if __name__ == "__main__":
    main()
