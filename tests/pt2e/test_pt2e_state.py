"""State dicts of graphs: whose scales are plain numbers, so that not every one fits."""

from __future__ import annotations

import copy
import functools
import io
from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
from torch import Tensor, fx, nn

from graph_models import calibrated, conv_net, photos, quantized
from tico.quantization import GPTQConfig, convert, prepare
from tico.quantization.config import DType, QScheme, affine
from tico_config import CalibrationError, PT2EConfig
from tico_pt2e import QuantGraph
from tico_quantizers.testing import refused, unchanged

State = Mapping[str, Tensor]
FINGERPRINT: Final = "literal_grids._extra_state"


PER_TENSOR: Final = PT2EConfig(weight=affine(DType.int(8), QScheme.PER_TENSOR_SYMM))


@functools.cache
def _made(factor: float, config: PT2EConfig) -> QuantGraph:
    return quantized(conv_net(), config, factor * photos(0))


def graph_of(factor: float = 1.0, config: PT2EConfig | None = None) -> QuantGraph:
    """Return a converted net that was calibrated with pictures times `factor`."""
    return copy.deepcopy(_made(factor, config or PT2EConfig()))


def with_gptq(graph: QuantGraph, bits: int) -> QuantGraph:
    """Return `graph` with weights that GPTQ has rounded."""
    prepared = prepare(graph, GPTQConfig(bits=bits, show_progress=False), inplace=False)
    prepared(photos(0))
    converted = convert(prepared)
    assert isinstance(converted, QuantGraph)
    return converted


def rewrapped(graph: QuantGraph) -> nn.Module:
    """Return what fx makes of the graph, no `QuantGraph` any more."""
    return fx.GraphModule(graph, graph.graph)


def test_the_state_of_a_graph_with_the_same_grids_is_loaded() -> None:
    """From a copy, through a file that holds tensors alone; weights may be others, as after GPTQ."""
    graph, file = graph_of(), io.BytesIO()
    expected = graph(photos(1))
    torch.save(graph.state_dict(), file)
    file.seek(0)
    other = copy.deepcopy(graph)
    with torch.no_grad():
        for buffer in other.buffers():
            buffer.zero_()
    assert (
        str(other.load_state_dict(torch.load(file, weights_only=True))) == "<All keys matched successfully>"
    )
    assert torch.equal(other(photos(1)), expected)
    again = with_gptq(graph, 8)
    assert torch.equal(_loaded(with_gptq(graph_of(), 8), again.state_dict())(photos(1)), again(photos(1)))


def _loaded(graph: QuantGraph, state: State) -> QuantGraph:
    graph.load_state_dict(state)
    return graph


FOREIGN: Final[Mapping[str, tuple[Callable[[QuantGraph], State], str]]] = {
    "other calibration": (
        lambda graph: graph_of(3.0).state_dict(),
        r"has other grids at \d+ of 15 points, first at stem.0.act_in \(scale 0\..* in the graph\); load it",
    ),
    "other format of weights": (
        lambda graph: graph_of(config=PT2EConfig(weight=affine(DType.uint(4)))).state_dict(),
        r"other grids at 4 of 15 points, first at wide.weight \(0 0 15, and 0 0 255 in",
    ),
    "other weights per tensor": (
        lambda graph: _halved(PER_TENSOR).state_dict(),
        r"first at wide\.weight \(scale 0\.\d+, zero point 0, codes -128 to 127, and",
    ),
    "GPTQ in fewer bits": (lambda graph: with_gptq(graph, 4).state_dict(), r"other grids at 4 of 15 points"),
    "float model": (
        lambda graph: conv_net().state_dict(),
        r"has no grids, and the graph has them at \d+ points; load that of a float model before prepare",
    ),
    "prepared graph": (
        lambda graph: calibrated(conv_net(), PT2EConfig(), photos(0)).state_dict(),
        r"has no grids, .* that of a prepared graph before convert",
    ),
    "earlier release": (
        lambda graph: {key: value for key, value in graph.state_dict().items() if key != FINGERPRINT},
        r"has no grids, .* that of an earlier release with that release",
    ),
    "damaged": (
        lambda graph: {**graph.state_dict(), FINGERPRINT: torch.zeros(3, dtype=torch.uint8)},
        r"has grids that cannot be read",
    ),
}


def _halved(config: PT2EConfig) -> QuantGraph:
    """Return a graph like the others whose float weights were half as large."""
    model = conv_net()
    with torch.no_grad():
        model.wide.weight.div_(2)
    return quantized(model, config, photos(0))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("name", FOREIGN)
def test_a_state_that_does_not_fit_is_refused(name: str, strict: bool) -> None:
    """In one sentence, strictly or not, before anything is loaded."""
    graph = graph_of(config=PER_TENSOR if "per tensor" in name else None)
    make, message = FOREIGN[name]
    state = make(graph)
    with unchanged(graph), pytest.raises(CalibrationError, match=message):
        graph.load_state_dict(state, strict=strict)


def test_graphs_without_grids_take_float_states() -> None:
    """A prepared graph takes the weights of a float model or of another prepared graph, and no integers."""
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval()
    x = torch.linspace(-1, 1, 16).view(4, 4)
    prepared = calibrated(model, PT2EConfig(), x)
    state = {name: 2 * value for name, value in model.state_dict().items()}
    prepared.load_state_dict(state)
    assert set(prepared.state_dict()) == set(model.state_dict())
    assert torch.equal(prepared.get_submodule("0").state_dict()["weight"], state["0.weight"])
    with refused(prepared, CalibrationError, field="state_dict") as caught:
        prepared.load_state_dict(quantized(model, PT2EConfig(), x).state_dict(), strict=False)
    assert "the graph has none" in str(caught.value)


def test_a_graph_inside_of_a_model_is_checked() -> None:
    """The error names it; a state dict that holds nothing of it is none of its business."""
    model, other = nn.Sequential(nn.ReLU(), graph_of()), nn.Sequential(nn.ReLU(), graph_of(3.0))
    model.load_state_dict(model.state_dict())
    model.load_state_dict({"2.weight": torch.zeros(1)}, strict=False)
    with pytest.raises(CalibrationError, match=r"^1: the state dict has other grids"):
        model.load_state_dict(other.state_dict())


def test_the_check_stays_where_fx_makes_another_module() -> None:
    """What fx makes of the graph has the same state dict and refuses the same ones."""
    graph, other = graph_of(), graph_of(3.0)
    plain = rewrapped(graph)
    assert set(plain.state_dict()) == set(graph.state_dict())
    plain.load_state_dict(graph.state_dict())
    with pytest.raises(CalibrationError, match="other grids"):
        plain.load_state_dict(other.state_dict())


def test_the_grids_are_those_of_the_graph_as_it_is() -> None:
    """Where someone changes a number in the graph and makes its code anew, the state dict says so."""
    graph, before = graph_of(), graph_of()
    node = next(node for node in graph.graph.nodes if "dequantize_per_tensor" in node.name)
    node.args = (node.args[0], 2 * node.args[1], *node.args[2:])
    graph.recompile()
    with pytest.raises(CalibrationError, match="1 of 15 points"):
        before.load_state_dict(graph.state_dict())
