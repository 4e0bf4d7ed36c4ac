"""The cells of the matrix of exports: which models, schemes and targets, and what comes of one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Final

from torch import nn

from export_models import SUBJECTS
from tico_config import ArtifactError, MissingExtraError, TicoError
from tico_export import (
    GGUF,
    PT2,
    AWQFormat,
    CompressedTensors,
    ExecuTorch,
    ExportResult,
    ExportTarget,
    GPTQFormat,
    Onnx,
    OpenVINO,
    export,
)

MODELS: Final = ("linear stack", "convolutions", "encoder", "embedded LLaMA", "Qwen3")

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

SESSIONS: Final[Mapping[str, str]] = {
    "OpenVINO": "openvino",
    "ExecuTorch": "xnnpack",
    "GPTQFormat": "gptqmodel",
    "AWQFormat": "gptqmodel",
    "GGUF": "llama_cpp",
}
"""Which nox session has the runtime of a target; the others are in the development environment."""

_DECIBELS: Final = re.compile(r"(?:inf|-?\d+)")


def tried(model: nn.Module, subject: str, target: str, path: Path) -> ExportResult | TicoError:
    """Return what came of an export of the model of `subject` to `path`: a result, or the error."""
    given = SUBJECTS[subject]
    try:
        return export(model, path, TARGETS[target], args=given.args, kwargs=dict(given.kwargs))
    except TicoError as error:
        return error


def cell(model: nn.Module, subject: str, target: str) -> str:
    """Return decibels with their bound, why there are none, or the reason of a refusal."""
    with TemporaryDirectory() as folder:
        return told(tried(model, subject, target, Path(folder) / "model.xml"), target)


def told(outcome: ExportResult | TicoError, target: str) -> str:
    """Return an outcome in the words of the matrix: ``53/25`` are dB and bound, ``13<25`` is a missed one."""
    if isinstance(outcome, MissingExtraError):
        return unverified(target)
    if isinstance(outcome, ArtifactError):
        problem = outcome.problems[0]
        found = [_DECIBELS.search(str(each)) for each in (problem.value, problem.expected)]
        figures = "<".join(each.group() for each in found if each is not None)
        return figures if figures.count("<") == 1 else reason(outcome)
    if isinstance(outcome, TicoError):
        return reason(outcome)
    return f"{outcome.sqnr:.0f}/{outcome.bound:.0f}" if outcome.verified else unverified(target)


def unverified(target: str) -> str:
    """Say which nox session has the runtime of `target`."""
    return f"runtimes({SESSIONS[target]})" if target in SESSIONS else "not verified"


def reason(error: TicoError) -> str:
    """Return the first problem of an error, without the path of its module and without the way out."""
    problem = error.problems[0]
    text = str(problem).partition("; ")[0]
    return text.removeprefix(f"{problem.module}: ")
