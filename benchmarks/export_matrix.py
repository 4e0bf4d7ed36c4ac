"""What each target makes of each model and scheme: decibels against the model, or a refusal.

A target whose runtime is not installed is left out, and named. Refusals stand below the table.

    python benchmarks/export_matrix.py [--models NAME …] [--schemes NAME …] [--targets NAME …] [--result FILE]
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

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


def cell(model: nn.Module, subject: str, target: ExportTarget, refusals: list[str]) -> str:
    """Return decibels, or the number of a refusal, which is added to `refusals` where it is new."""
    given = SUBJECTS[subject]
    with tempfile.TemporaryDirectory() as folder:
        try:
            result = export(
                model, Path(folder) / "model.xml", target, args=given.args, kwargs=dict(given.kwargs)
            )
        except TicoError as error:
            return noted(str(error.problems[0]), refusals)
    return f"{result.sqnr:.0f}" if result.verified else "not verified"


def noted(reason: str, refusals: list[str]) -> str:
    """Return the number of a reason."""
    short = reason.partition("; ")[0].partition(": ")[2] or reason
    if short not in refusals:
        refusals.append(short)
    return f"[{refusals.index(short) + 1}]"


def row(subject: str, scheme: str, targets: Sequence[str], refusals: list[str]) -> list[str]:
    """Return a cell for each of the targets."""
    try:
        model = converted(subject, scheme)
    except TicoError as error:
        return [noted(str(error.problems[0]), refusals)] * len(targets)
    return [cell(model, subject, TARGETS[each], refusals) for each in targets]


def main() -> None:
    """Print the table and the refusals."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    for name, known in (("models", SUBJECTS), ("schemes", SCHEMES), ("targets", TARGETS)):
        parser.add_argument(f"--{name}", nargs="+", choices=list(known), default=list(known))
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    refusals: list[str] = []
    with recorded.recording(options.result) as out:
        out.table("Decibels against the model", *options.targets, width=44)
        for subject in options.models:
            for scheme in options.schemes:
                out.row(f"{subject}, {scheme}", *row(subject, scheme, options.targets, refusals))
        for number, reason in enumerate(refusals, 1):
            out.note(f"[{number}] {reason}")


if __name__ == "__main__":
    main()
