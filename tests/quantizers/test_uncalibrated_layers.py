"""Layers that no data reach: their weights are read uncalled, or the config decides."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor, nn

from model_families import FAMILIES, seeded
from tico.quantization import AWQConfig, GPTQConfig, SmoothQuantConfig, convert, prepare, report
from tico_config import CalibrationError, ModuleConfig
from tico_quantizers import QuantizedModule
from tico_quantizers.testing import refused, unchanged, values

CONFIGS = [
    GPTQConfig(show_progress=False),
    AWQConfig(group_size=None, show_progress=False),
    SmoothQuantConfig(),
]


class Reading(nn.Module):
    """A block with a layer that it never calls."""

    def __init__(self, how: str) -> None:
        """Make the layers."""
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.conv, self.how = nn.Conv1d(8, 8, 3, padding=1), how

    def forward(self, x: Tensor) -> Tensor:
        """Return the next hidden state."""
        hidden: Tensor = self.two(self.one(self.norm(x)).relu())
        match self.how:
            case "function":
                hidden = torch.nn.functional.conv1d(hidden.mT, self.conv.weight, padding=1).mT
            case "view":
                hidden = hidden * self.conv.weight.view(-1).sum()
            case "property":
                hidden = hidden * self.conv.weight.mT.sum()
            case "shape":
                hidden = hidden * self.conv.weight.shape[0] / 8
            case _:
                pass
        return x + hidden


def stack(how: str) -> nn.Module:
    """Return two such blocks, in evaluation mode."""
    return seeded(lambda: nn.Sequential(Reading(how), Reading(how)))


def lines(model: nn.Module) -> dict[str, str]:
    """Return the reasons of the report, by path."""
    return {line.path: line.reason for line in report(model).layers}


@pytest.mark.parametrize("how", ["function", "view", "property"])
@pytest.mark.parametrize("config", CONFIGS[:2], ids=lambda config: config.name)
def test_a_weight_that_is_read_without_a_call_stays_float(how: str, config: ModuleConfig) -> None:
    """Nothing tells what such a layer reads; the rest is quantized, and the report says why."""
    model = prepare(stack(how), config)
    for seed in range(2):
        model(values(seed, 2, 20, 8))
    found = convert(model)
    assert type(found.get_submodule("0.conv")) is nn.Conv1d
    assert isinstance(found.get_submodule("0.one"), QuantizedModule)
    assert "its weight is read, but the layer is never called" in lines(found)["1.conv"]


@pytest.mark.parametrize("how", ["shape", "not at all"])
def test_a_layer_that_nothing_reads_is_an_error_or_left_out(how: str) -> None:
    """As the config says; to ask for a shape is not to read."""
    model = prepare(stack(how), GPTQConfig(show_progress=False))
    model(values(0, 2, 20, 8))
    with refused(model, CalibrationError, module="0.conv") as caught:
        convert(model)
    assert {problem.module for problem in caught.value.problems} == {"0.conv", "1.conv"}
    skipping = prepare(stack(how), GPTQConfig(show_progress=False, on_uncalibrated="skip"))
    skipping(values(0, 2, 20, 8))
    found = convert(skipping)
    assert type(found.get_submodule("0.conv")) is nn.Conv1d
    assert isinstance(found.get_submodule("1.two"), QuantizedModule)
    assert lines(found)["0.conv"].startswith("no calibration data reached it")


class Towers(nn.Module):
    """Two towers, of which the second is run for images only."""

    def __init__(self) -> None:
        """Make the blocks."""
        super().__init__()
        self.text = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8))
        self.vision = nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8))

    def forward(self, x: Tensor, image: Tensor | None = None) -> Tensor:
        """Return the text's hidden state, with the image's added."""
        hidden: Tensor = self.text(x)
        return hidden if image is None else hidden + self.vision(image)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)
def test_a_tower_without_images(config: ModuleConfig) -> None:
    """It is refused with every layer, or left as it was with a line for each."""
    x = values(0, 2, 20, 8)
    model = prepare(seeded(Towers), config, (x, x))
    model(x)
    with unchanged(model), pytest.raises(CalibrationError) as caught:
        convert(model)
    assert {problem.module for problem in caught.value.problems} == {"vision.1", "vision.2"}
    model = prepare(seeded(Towers), attrs.evolve(config, on_uncalibrated="skip"), (x, x))  # type: ignore[call-arg]
    model(x)
    found = convert(model)
    assert "no calibration data reached it" in "".join(
        reason for path, reason in lines(found).items() if path.startswith("vision")
    )
    assert torch.equal(found.vision(x), seeded(Towers).vision(x))  # type: ignore[operator]


def test_without_any_data_nothing_is_skipped() -> None:
    """That is a mistake, whatever the config says."""
    model = prepare(stack("not at all"), GPTQConfig(show_progress=False, on_uncalibrated="skip"))
    with refused(model, CalibrationError, module="0.one"):
        convert(model)


def test_mamba_is_quantized_but_for_its_kernels() -> None:
    """Its convolution and the projection of its steps hand their weights on."""
    model, batches = FAMILIES["jamba"]()
    prepared = prepare(model, GPTQConfig(show_progress=False, min_expert_tokens=0))
    with torch.no_grad():
        for batch in batches:
            prepared(**batch)
    found = lines(convert(prepared))
    uncalled = [path for path, reason in found.items() if "never called" in reason]
    assert uncalled == [f"model.layers.{n}.mamba.{name}" for n in (0, 2) for name in ("conv1d", "dt_proj")]
