"""The examples on the embedded model: each runs, is short, and prints what it promises."""

from __future__ import annotations

import math
import re
import runpy
from pathlib import Path
from typing import Final

import pytest
import torch

from comparison import Difference

EXAMPLES: Final = Path(__file__).parents[2] / "examples"
NAMES: Final = (*sorted(path.stem for path in EXAMPLES.glob("quantize_*.py")), "gptq_then_ptq")
FIGURES: Final = re.compile(r"mean \|error\| ([\d.]+), SQNR +([\d.-]+) dB, peak error / interval ([\d.]+)")


@pytest.mark.parametrize("name", NAMES)
def test_example_prints_its_figures(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Every example compares with float, and no way of quantizing leaves nothing of the signal."""
    path = EXAMPLES / f"{name}.py"
    assert len(path.read_text(encoding="utf-8").splitlines()) < 80
    runpy.run_path(str(path), run_name="__main__")
    printed = capsys.readouterr().out
    figures = [tuple(map(float, each)) for each in FIGURES.findall(printed)]
    assert len(figures) >= 2, printed
    assert all(mean > 0 and sqnr > 5 and 0 < peak < 1 for mean, sqnr, peak in figures), printed


def test_example_mends_the_outlier(capsys: pytest.CaptureFixture[str]) -> None:
    """16 bits for what enters `down_proj` win 6 dB or more."""
    runpy.run_path(str(EXAMPLES / "quantize_llama_mlp.py"), run_name="__main__")
    before, after = (float(sqnr) for _, sqnr, _ in FIGURES.findall(capsys.readouterr().out))
    assert after - before > 6


def test_figures_are_their_definitions() -> None:
    """Mean, decibels and peak of an error of 1 at one of four values from -2 to 2."""
    difference = Difference.between(torch.tensor([-2.0, 0.0, 0.0, 2.0]), torch.tensor([-2.0, 1.0, 0.0, 2.0]))
    assert (difference.mean, difference.peak) == (0.25, 0.25)
    assert difference.sqnr == pytest.approx(10 * math.log10(8))
