"""Activations that no calibration data reach: an error, or float with a line in the report."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare, report
from tico.quantization.config import CalibrationError
from tico_quantizers.testing import values


class Towers(nn.Module):
    """Two towers, of which a call may leave one out."""

    def __init__(self) -> None:
        super().__init__()
        self.text = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
        self.image = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, text: Tensor, image: Tensor | None = None) -> Tensor:
        """Return what the towers make of `text` and `image` (samples, 4)."""
        found: Tensor = self.text(text)
        return found if image is None else found + self.image(image)


def calibrated(config: PTQConfig, *batches: Tensor) -> nn.Module:
    """Return the towers, prepared and calibrated with texts alone."""
    prepared = prepare(Towers().eval(), config)
    for batch in batches:
        prepared(batch)
    return prepared


def test_by_default_it_is_an_error_that_names_the_way_out() -> None:
    """Every point that saw nothing is named, and so is the field."""
    with pytest.raises(CalibrationError, match=r"image\.0\.act_in.*on_uncalibrated='skip'") as caught:
        convert(calibrated(PTQConfig(), values(0, 3, 4)))
    assert {problem.module for problem in caught.value.problems} == {
        f"image.{part}.{point}" for part in (0, 1) for point in ("act_in", "act_out")
    }


def test_skipping_leaves_the_activations_float_and_says_so() -> None:
    """What data reach is quantized as ever; weights need no data."""
    x = values(0, 3, 4)
    torch.manual_seed(0)
    whole = convert(calibrated(PTQConfig(on_uncalibrated="skip"), x))
    lines = {line.path: line for line in report(whole).layers}
    assert lines["image.0"].activation == "float"
    assert lines["image.0"].reason == "no calibration data reached act_in, act_out, left float"
    assert lines["image.0"].weight.startswith("uint8")
    assert lines["text.0"].activation != "float"
    assert whole(x, x).isfinite().all()


def test_without_any_data_nothing_is_skipped() -> None:
    """A model that was never run is an error in any case."""
    with pytest.raises(CalibrationError):
        convert(calibrated(PTQConfig(on_uncalibrated="skip")))
