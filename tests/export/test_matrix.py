"""The matrix of exports: each cell passes within its bound, or is refused for a reason that is listed.

Whether a cell is refused is asked here, and agrees with what the benchmark has recorded. Run here are all
checkpoints, and the programs of the linear layers. What takes minutes, which are the graphs of the other
models, stands in the recording, and some of it in `test_onnx.py`.
"""

from __future__ import annotations

import functools
import importlib
import itertools
from pathlib import Path
from typing import Final

import pytest
from torch import nn

import export_matrix
from distributions import ROOT
from export_cells import MODELS, TARGETS, reason, told, tried, unverified
from export_models import SCHEMES, converted
from export_refusals import REFUSALS, every_problem, listed
from recorded import from_json
from tico_config import TicoError
from tico_export import ExportResult, Source
from tico_observers import read_sealed

pytest.importorskip("onnxruntime", reason="the lowest versions are tested without the extra onnx")

# Libraries warn of themselves.
pytestmark = pytest.mark.filterwarnings("ignore")

GRAPHS: Final = tuple(name for name, each in TARGETS.items() if each.needs_example)
ROWS: Final = [
    (subject, scheme)
    for subject, scheme in itertools.product(MODELS, SCHEMES)
    if subject == "linear stack" or not scheme.startswith("PT2E")  # seconds each; the others are recorded
]
PROGRAMS: Final = tuple(each for each in TARGETS if each.startswith("PT2"))
RECORDED: Final = ROOT / "benchmarks/results/export_matrix.json"
CELLS: Final = [(subject, scheme, target) for subject in MODELS for scheme in SCHEMES for target in TARGETS]


def runs_here(subject: str, scheme: str, target: str) -> bool:
    """Whether a cell is accepted, and cheap enough to be run by these tests."""
    if listed(subject, scheme, target) is not None or (subject, scheme) not in ROWS:
        return False
    cheap = subject == "linear stack" and not scheme.endswith("linear")
    return cheap if target in PROGRAMS else target != "Onnx"


@functools.cache
def model(subject: str, scheme: str) -> nn.Module | TicoError:
    """Return the model of a row, which exports leave as it was, or why there is none."""
    try:
        return converted(subject, scheme)
    except TicoError as error:
        return error


@pytest.mark.parametrize(("subject", "scheme"), ROWS)
def test_what_is_refused_is_listed(subject: str, scheme: str) -> None:
    """With its reason, and each problem says what to do; nothing else is refused."""
    made = model(subject, scheme)
    for target in TARGETS:
        found = made if isinstance(made, TicoError) else every_problem(Source.read(made), target)
        rule = listed(subject, scheme, target)
        assert (found is None) == (rule is None), (target, str(found))
        if found is not None and rule is not None:
            assert rule.reason in reason(found), (target, reason(found))
            assert all(each.remedy for each in found.problems), target


def test_every_listed_reason_is_met() -> None:
    """A rule that no cell needs any more goes."""
    assert {listed(*each) for each in CELLS} - {None} == set(REFUSALS)


@pytest.mark.parametrize(("subject", "scheme", "target"), [each for each in CELLS if runs_here(*each)])
def test_a_cell_passes_or_says_who_would_verify_it(
    subject: str, scheme: str, target: str, tmp_path: Path
) -> None:
    """Where the runtime is not installed, what was written is read again."""
    made = model(subject, scheme)
    assert isinstance(made, nn.Module)
    outcome = tried(made, subject, target, tmp_path / "model.xml")
    if isinstance(outcome, ExportResult) and outcome.verified:
        assert outcome.sqnr >= outcome.bound
        return
    assert told(outcome, target) == unverified(target), str(outcome)
    if isinstance(outcome, ExportResult):
        assert outcome.consumer.startswith("not verified: ")
        assert len(tensors_in(outcome.path)) > len(Source.read(made).weights)
    else:
        assert "pip install 'tico-export[" in str(outcome)
        assert list(tmp_path.iterdir()) == []


def tensors_in(path: Path) -> list[str]:
    """Return the names of the tensors in a checkpoint."""
    if path.is_dir():
        return list(read_sealed(path / "model.safetensors").tensors)
    return [each.name for each in importlib.import_module("gguf").GGUFReader(path).tensors]


@pytest.mark.parametrize("target", TARGETS)
def test_the_recording_agrees(target: str) -> None:
    """A cell that is taken has figures there, or names the session of its runtime; the others are refused.

    Of graphs a cell may say that it was not run; of checkpoints none does.
    """
    cells = export_matrix.read(RECORDED)
    for subject, scheme in itertools.product(MODELS, SCHEMES):
        text = cells.get((f"{subject}, {scheme}", target), "not run")
        if text == "not run" and target in GRAPHS:
            continue
        taken = export_matrix.is_figures(text) or text.startswith("runtimes(")
        assert taken == (listed(subject, scheme, target) is None), (subject, scheme, text)


def test_the_page_has_the_recorded_table() -> None:
    """As the command prints it."""
    table = from_json(RECORDED.read_text("utf-8")).tables[-1]
    assert export_matrix.markdown(table) in (ROOT / "docs/reference/export-formats.md").read_text("utf-8")
