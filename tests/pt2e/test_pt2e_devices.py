"""Graphs that are moved to another device, where their nodes name one, or cast to another format."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from typing import Final, TypeAlias

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from graph_models import calibrated, quantized
from tico_config import PT2EConfig, UnsupportedError
from tico_pt2e import QuantGraph
from tico_quantizers.testing import unchanged, values

META: Final = torch.device("meta")
Made: TypeAlias = Callable[[nn.Module, PT2EConfig, Tensor], QuantGraph]


class Placed(nn.Module):
    """Causal attention over tokens with positions that are made in each call, and a branch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed `x` (batch, tokens, 8)."""
        places = torch.arange(x.shape[1], device=x.device).to(x.dtype).unsqueeze(1)
        scale = torch.full((8,), 0.5, device=x.device, dtype=x.dtype)
        y: Tensor = self.layer(x) + torch.zeros_like(x) + places * scale
        return F.scaled_dot_product_attention(y, y, y, is_causal=True)


class Branching(nn.Module):
    """A branch that makes a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's result, moved up or not."""
        y: Tensor = self.layer(x)
        result: Tensor = torch.cond(
            y.sum() > 0, lambda y: y + torch.ones(8, device=x.device), torch.relu, (y,)
        )
        return result


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return a model, always the same one, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


X: Final = values(0, 4, 6, 8)


def devices_in(model: nn.Module) -> Iterator[torch.device]:
    """Yield the devices that nodes name, in branches too."""
    for module in model.modules():
        if isinstance(module, fx.GraphModule):
            found = (node.kwargs.get("device") for node in module.graph.nodes)
            yield from (device for device in found if isinstance(device, torch.device))


def test_a_graph_runs_where_it_was_moved_to() -> None:
    """What its nodes make is made there; the graph that it is a copy of stays where it is, bit for bit."""
    graph = quantized(seeded(Placed), PT2EConfig(), X)
    expected = graph(X)
    assert set(devices_in(graph)) == {torch.device("cpu")}
    for move in (
        lambda graph: graph.to("meta"),
        lambda graph: graph.to_empty(device="meta"),
        lambda graph: graph.to(device=META, dtype=torch.float32),
        lambda graph: nn.Sequential(graph).to(META)[0],
    ):
        moved = move(copy.deepcopy(graph))
        assert moved(X.to("meta")).device == META
        assert set(devices_in(moved)) == {META}
    assert torch.equal(graph(X), expected)
    assert set(devices_in(graph)) == {torch.device("cpu")}


@pytest.mark.parametrize("make", [Placed, Branching])
@pytest.mark.parametrize("state", [calibrated, quantized])
def test_branches_and_prepared_graphs_move_too(make: Callable[[], nn.Module], state: Made) -> None:
    """No node and no tensor is left behind."""
    graph = state(seeded(make), PT2EConfig(), X).to("meta")
    assert set(devices_in(graph)) == {META}
    assert all(tensor.is_meta for tensor in (*graph.parameters(), *graph.buffers()))


def test_a_graph_that_was_moved_is_exported_there() -> None:
    """The program that torch makes of it names the new device alone."""
    graph = quantized(seeded(Placed), PT2EConfig(), X).to("meta")
    program = torch.export.export(graph, (X.to("meta"),))
    assert {node.kwargs["device"] for node in program.graph.nodes if "device" in node.kwargs} == {META}


CASTS: Final[Mapping[str, Callable[[nn.Module], nn.Module]]] = {
    "bfloat16()": lambda model: model.bfloat16(),
    "half()": lambda model: model.half(),
    "double()": lambda model: model.double(),
    "to(dtype)": lambda model: model.to(torch.float16),
    "to(device, dtype)": lambda model: model.to("meta", torch.float16),
    "type(dtype)": lambda model: model.type(torch.float64),
    "to(dtype) of a model around it": lambda model: nn.Sequential(model).to(torch.float16),
}


@pytest.mark.parametrize("state", [calibrated, quantized])
@pytest.mark.parametrize("cast", CASTS)
def test_a_graph_is_not_cast(cast: str, state: Made) -> None:
    """It names formats where it was exported, so that half of it would follow; nothing is changed."""
    graph = state(seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))), PT2EConfig(), X)
    message = (
        r"exported in, torch.float32 here, and torch\.\w+ was asked for; cast the float model and prepare"
    )
    with unchanged(graph), pytest.raises(UnsupportedError, match=message):
        CASTS[cast](graph)


def test_a_cast_to_the_format_that_it_has_changes_nothing() -> None:
    """Scales of weights stay float32 in a graph of bfloat16, so that no bit of the result is another one."""
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8))).bfloat16()
    graph = quantized(model, PT2EConfig(), X.bfloat16())
    expected, formats = graph(X.bfloat16()), {name: each.dtype for name, each in graph.named_buffers()}
    assert torch.float32 in formats.values()
    for same in (graph.bfloat16(), graph.to("cpu", torch.bfloat16)):
        assert torch.equal(same(X.bfloat16()), expected)
    assert {name: each.dtype for name, each in graph.named_buffers()} == formats
    with pytest.raises(UnsupportedError, match=r"torch.bfloat16 here, and torch.float32 was asked for"):
        graph.float()
