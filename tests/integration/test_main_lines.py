"""The lines that the library is made for, as a user of Samsung's tico would write them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tico.quantization import report

WEIGHT_LINES = """
from tico.quantization import prepare, convert, PT2EConfig, GPTQConfig
weight_config = GPTQConfig()
prepare(q_model, weight_config)
run_fn(q_model)
convert(q_model, weight_config)
"""

PTQ_LINES = """
from tico.quantization import prepare, convert
from tico.quantization.config import PTQConfig
model = prepare(model, PTQConfig())
for batch in calibration_dataloader:
    model(batch)
quantized_model = convert(model)
"""

GRAPH_LINES = """
from tico.quantization import prepare, convert, PT2EConfig, GPTQConfig
activation_config = PT2EConfig()
q_model = prepare(model, activation_config, args=(input_tensor,), kwargs={'kwarg': value}, inplace=False)
run_fn(q_model)
q_model = convert(q_model, activation_config, inplace=False)
weight_config = GPTQConfig()
prepare(q_model, weight_config)
run_fn(q_model)
convert(q_model, weight_config)
"""


class Scaled(nn.Module):
    """A small model with a positional and a keyword input."""

    def __init__(self) -> None:
        """Make two layers."""
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor, kwarg: float = 1.0) -> Tensor:
        """Return the scaled output."""
        y: Tensor = self.second(torch.relu(self.first(x)))
        return y * kwarg


def run_fn(model: nn.Module) -> None:
    """Calibrate."""
    generator = torch.Generator().manual_seed(0)
    model(torch.randn(32, 16, generator=generator), kwarg=2.0)


def test_weights_are_quantized_in_place() -> None:
    """`prepare` and `convert` work on the object that was passed in; nobody has to take what they return."""
    q_model = Scaled().eval()
    exec(WEIGHT_LINES, {"q_model": q_model, "run_fn": run_fn})  # noqa: S102 - the lines as they stand
    assert [type(layer).__name__ for layer in (q_model.first, q_model.second)] == ["QuantizedLinear"] * 2


def test_model_is_quantized_in_three_steps() -> None:
    """A prepared model is calibrated by calling it, and `convert` needs no config."""
    names: dict[str, object] = {
        "model": nn.Sequential(nn.Linear(16, 4), nn.ReLU()).eval(),
        "calibration_dataloader": [torch.ones(2, 16), torch.zeros(2, 16)],
    }
    exec(PTQ_LINES, names)  # noqa: S102 - the lines as they stand
    model = names["quantized_model"]
    assert isinstance(model, nn.Sequential)
    assert [type(layer).__name__ for layer in model] == ["QuantizedLinear", "QuantUnary"]


def test_a_graph_is_quantized_and_its_weights_once_more() -> None:
    """A copy is exported, calibrated with another batch size and converted; then GPTQ takes over."""
    names = {"model": Scaled().eval(), "input_tensor": torch.ones(2, 16), "value": 2.0, "run_fn": run_fn}
    exec(GRAPH_LINES, names)  # noqa: S102 - the lines as they stand
    q_model = names["q_model"]
    assert isinstance(q_model, nn.Module)
    weights = [line for line in report(q_model).layers if line.weight != "float"]
    assert [line.weight for line in weights] == ["uint4 asymmetric per row"] * 2
    assert "act_in uint8" in weights[0].activation
