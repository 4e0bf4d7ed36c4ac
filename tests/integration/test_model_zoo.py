"""One architecture of each family in every column of the model zoo, and the judgement of its cells."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import pytest
import torch

from tico_config import Problem, UnsupportedError
from zoo import ARCHITECTURES, COLUMNS, FAULT, FLOAT, LOW, REFUSED, Trial, measured, tried

OF_FAMILY: Final[Mapping[str, str]] = {
    "causal": "Phi3ForCausalLM",
    "experts": "MixtralForCausalLM",
    "hybrid": "Lfm2ForCausalLM",
    "encoder": "ModernBertForMaskedLM",
    "encoder-decoder": "T5ForConditionalGeneration",
    "vision": "CLIPModel",
    "network": "UNet",
    "vision-language": "Qwen2VLForConditionalGeneration",
}
NOT_RIGHT: Final[Mapping[tuple[str, str], tuple[str, str]]] = {}
"""What a cell shows, and how its reason begins or goes on, where there is one."""

LEFT_OUT: Final = {
    *(("PT2E", family) for family in OF_FAMILY if family not in ("causal", "network")),
    *(("declared", family) for family in OF_FAMILY if family != "causal"),
}
"""What the whole table has, and this file leaves out."""

TRIALS: Final = {each.name: Trial(each) for each in ARCHITECTURES if each.name in OF_FAMILY.values()}


def test_every_family_has_an_architecture_here() -> None:
    """A family that is added to the table is added here too."""
    assert {each.family for each in ARCHITECTURES} == OF_FAMILY.keys()


@pytest.mark.parametrize("family", OF_FAMILY)
@pytest.mark.parametrize("column", COLUMNS)
@pytest.mark.filterwarnings("ignore")
def test_cell_is_right_or_a_refusal_with_its_reason(family: str, column: str) -> None:
    """At least the dB that rounding at random leaves, the same bits elsewhere, the tokens of either cache."""
    if (column, family) in LEFT_OUT:
        pytest.skip("the whole table has it")
    trial = TRIALS[OF_FAMILY[family]]
    cell = tried(lambda: COLUMNS[column](trial))
    shown, reason = NOT_RIGHT.get((family, column), ("", ""))
    assert cell.is_right, cell.reason
    assert (cell.shown in (REFUSED, FLOAT)) == bool(shown), cell.reason
    assert reason in cell.reason


def test_names_are_those_of_one_architecture_each() -> None:
    """A saved model is found again by the name of its architecture."""
    names = [each.name for each in ARCHITECTURES]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("found", "shown"), [(math.nan, FAULT), (19.0, f"{LOW} 19 dB"), (21.0, "21 dB"), (math.inf, "ok")]
)
def test_figures_are_judged_by_the_bound(found: float, shown: str) -> None:
    """NaN is a fault, and what lies below the bound is marked."""
    assert measured(found, 20.0).shown == shown


def test_errors_of_other_libraries_are_faults_and_ours_refusals() -> None:
    """A refusal shows its first sentence."""

    def fails() -> None:
        raise IndexError("list index out of range")

    def refuses() -> None:
        raise UnsupportedError(Problem(expected="a model of ours", sentence="it is none of ours"))

    assert tried(fails).shown == FAULT  # type: ignore[arg-type]  # it returns no cell
    assert tried(refuses).reason == "it is none of ours"  # type: ignore[arg-type]


def test_the_bound_is_that_of_eight_bits() -> None:
    """Weights of six bits, 12 dB more noise, lie below it, which lies 6 dB below those of eight."""
    trial = TRIALS["Phi3ForCausalLM"]
    steps = {bits: _rounded(trial, bits) for bits in (6, 8)}
    assert steps[6] < trial.bound < steps[8]


def _rounded(trial: Trial, bits: int) -> float:
    """Return the dB of the model whose weights are rounded to a grid of `bits` bits for each row."""
    model = trial.model()
    with torch.no_grad():
        for weight in model.parameters():
            step = (weight.amax(-1, keepdim=True) - weight.amin(-1, keepdim=True)) / (2**bits - 1)
            weight.copy_(torch.where(step > 0, (weight / step).round() * step, weight))
    return trial.decibels(trial.outputs(model))
