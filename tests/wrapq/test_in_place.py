"""Modules that write to their input, which others read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, load_quantized, prepare, save_quantized
from tico.quantization.config import no_quant
from tico_wrapq import lookup
from tiny_models import values

KINDS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.SiLU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish),
    *(nn.Hardsigmoid, nn.Hardtanh, nn.RReLU),
)

IN_PLACE = {"inplace": True}


class ReadAgain(nn.Module):
    """An activation whose input is read behind it: where it works in place, that is its output."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.layer, self.activation, self.last = nn.Linear(4, 4), activation, nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the last layer of the activation and its input."""
        hidden = self.layer(x)
        activated = self.activation(hidden)
        read = hidden if getattr(self.activation, "inplace", False) else activated
        last: Tensor = self.last(activated) + read
        return last


def _converted(make: Callable[[], nn.Module], overrides: Mapping[str, object]) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = ReadAgain(make()).eval()
    expected = model(values(0, 5, 4))
    prepare(model, PTQConfig(overrides=dict(overrides)))
    assert torch.equal(model(values(0, 5, 4)), expected)
    converted = convert(model).requires_grad_(False)
    return converted, converted(values(1, 5, 4))


LEFT = [{}, {"activation.act_in": no_quant()}, {"activation.act_out": no_quant()}, {"activation": no_quant()}]


@pytest.mark.parametrize("overrides", LEFT, ids=["all", "no act_in", "no act_out", "none"])
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_to_is_what_comes_out(
    kind: type[nn.Module], overrides: Mapping[str, object], tmp_path: Path
) -> None:
    """Whoever reads the input again reads the output, on its grid; loaded from a file too."""
    assert lookup(type(kind())) is not None
    model, output = _converted(lambda: kind(**IN_PLACE), overrides)
    _, expected = _converted(kind, overrides)
    assert torch.equal(output, expected)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, ReadAgain(kind(**IN_PLACE)))
    assert torch.equal(loaded(values(1, 5, 4)), expected)


def test_the_tensor_is_the_one_that_was_given() -> None:
    """By position or by name."""
    model = prepare(nn.Sequential(nn.ReLU(inplace=True)).eval(), PTQConfig())
    model(values(0, 5, 4))
    layer = convert(model).get_submodule("0")
    x = values(1, 5, 4)
    assert layer(x) is x
    assert layer(input=x) is x
