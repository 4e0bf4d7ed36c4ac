"""`PT2(dialect=…)`: programs as runtimes read them; what each takes, `test_matrix.py` says."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import export_pt2
from export_models import SUBJECTS, converted
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_export import PT2, export, load_program


def _operators(path: Path) -> Counter[str]:
    nodes = load_program(path).graph.nodes
    return Counter(str(node.target) for node in nodes if node.op == "call_function")


def test_codes_stand_unpacked_in_the_file(tmp_path: Path) -> None:
    """No operator is left but products, grids and the model's own; unread tensors are gone."""
    path = tmp_path / "m.pt2"
    export(converted("linear stack", "W4 g32"), path, PT2(), args=SUBJECTS["linear stack"].args)
    assert set(_operators(path)) == {
        "aten.linear.default",
        "aten.relu.default",
        "aten.view.default",
        "quantized_decomposed.dequantize_per_channel_group.default",
    }
    held = load_program(path).state_dict
    assert [each.dtype for each in held.values() if each.ndim == 2][:1] == [torch.uint8]
    assert not [name for name in held if name.endswith(("like", "packed.codes"))]


def test_a_grid_stands_once(tmp_path: Path) -> None:
    """A value that is on a grid already is not moved there again."""
    path = tmp_path / "m.pt2"
    export(converted("linear stack", "W8A8"), path, PT2(), args=SUBJECTS["linear stack"].args)
    # The input, the results of three layers and of two activation functions.
    assert _operators(path)["quantized_decomposed.quantize_per_tensor.default"] == 6


def test_openvino_quantizes_weights_in_the_graph(tmp_path: Path) -> None:
    """Weights are floats that are quantized and dequantized there."""
    path = tmp_path / "m.pt2"
    target = PT2(dialect="openvino")
    export(converted("linear stack", "W8A8"), path, target, args=SUBJECTS["linear stack"].args)
    assert _operators(path)["quantized_decomposed.quantize_per_channel.default"] == 3


def test_attention_of_torch_itself_is_summed_in_another_order(tmp_path: Path) -> None:
    """Outside of programs it is one operator: within the rounding of floats, and not the same bits."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True).eval()
    x = torch.linspace(-1, 1, 2 * 8 * 16).view(2, 8, 16)
    prepared = prepare(layer, GPTQConfig(bits=4, group_size=16, show_progress=False), args=(x,))
    prepared(x)
    result = export(convert(prepared), tmp_path / "m.pt2", PT2(), args=(x,), verify="require")
    assert result.sqnr > result.bound > 70


class Positions(nn.Module):
    """A layer that adds a function of the positions, which follow from no input and from no tensor."""

    def __init__(self) -> None:
        """Make the layer and the function."""
        super().__init__()
        self.layer, self.act = nn.Linear(8, 8), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """Return the sum of both."""
        summed: Tensor = self.layer(x) + self.act(torch.arange(8.0).sin())
        return summed


def test_values_that_follow_from_positions_are_no_weights(tmp_path: Path) -> None:
    """They are quantized in the graph, and only codes of the model are constants."""
    x = torch.linspace(-2, 2, 40).view(5, 8)
    prepared = prepare(nn.Sequential(Positions()).eval(), PTQConfig())
    prepared(x)
    path = tmp_path / "m.pt2"
    assert export(convert(prepared), path, PT2(), args=(x,)).max_difference == 0.0
    assert _operators(path)["aten.arange.default"] == 1
    assert len([each for each in load_program(path).state_dict if each.endswith("weight_codes")]) == 1


@pytest.mark.parametrize("dialect", export_pt2.CONFIGS)
def test_the_example_is_loaded_again(dialect: str, tmp_path: Path) -> None:
    """Its programs have grids that the dialect knows, and run."""
    result = export_pt2.write(dialect, tmp_path)
    assert (result.verified, result.max_difference) == (True, 0.0)
    module = load_program(result.path).module()
    assert module(export_pt2.X).shape == (64, 8)


def test_the_example_makes_a_circle_file_by_the_converter(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The converter is given the program of the dialect for Circle."""
    converter = tmp_path / "pt2-to-circle"
    converter.write_text('#!/bin/sh\ncp "$2" "$4"\n')  # stands in for -i PROGRAM -o CIRCLE
    converter.chmod(0o700)
    export_pt2.main(tmp_path, converter)
    assert (tmp_path / "model.circle").read_bytes() == (tmp_path / "circle.pt2").read_bytes()
    assert capfd.readouterr().out.splitlines()[-1] == str(tmp_path / "model.circle")
