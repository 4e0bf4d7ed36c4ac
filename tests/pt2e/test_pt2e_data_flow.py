"""What follows from constants, shapes and positions is no activation, and has no grid."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PT2EConfig, PTQConfig, convert, prepare, report
from tico.quantization.config import no_quant
from tico_quantizers.testing import seeded, values


def quantized(model: nn.Module, *args: Tensor) -> nn.Module:
    """Return the graph calibrated with `args`."""
    prepared = prepare(model, PT2EConfig(), args=args, inplace=False)
    prepared(*args)
    return convert(prepared)


def decibels(expected: Tensor, found: Tensor) -> float:
    """Return the ratio of signal and noise."""
    return float(10 * torch.log10(expected.square().mean() / (found - expected).square().mean()))


def left(model: nn.Module) -> dict[str, float]:
    """Return the operators that stayed float, with their counts."""
    return dict(report(model).layers[0].figures)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def rotation(tokens: int) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (tokens, 16) of positions."""
    angles = torch.arange(tokens).float()[:, None] / 10_000 ** (torch.arange(0, 16, 2) / 16)
    return torch.cat([angles.cos()] * 2, -1), torch.cat([angles.sin()] * 2, -1)


class RotaryAttention(nn.Module):
    """Causal attention of two heads whose queries and keys are turned by their positions."""

    def __init__(self, known: int | None = None) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.known = None if known is None else rotation(known)

    def forward(self, x: Tensor) -> Tensor:
        """Return the mixed values of `x` (samples, tokens, 32)."""
        count = x.shape[1]
        cos, sin = self.known or rotation(count)
        query, key, value = self.qkv(x).view(-1, count, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
        query, key = (self._turned(each, cos, sin) for each in (query, key))
        mixed = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        return mixed.transpose(1, 2).reshape(-1, count, 32)

    def _turned(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, -1)
        return x * cos + torch.cat([-second, first], -1) * sin


@pytest.mark.parametrize("tokens", [16, 512])
def test_rotary_angles_are_exact_at_any_length(tokens: int) -> None:
    """The result is that of a model that holds the cosines and sines: angles have no grid."""
    x = values(0, 2, tokens, 32)
    computed, known = seeded(RotaryAttention), seeded(lambda: RotaryAttention(tokens))
    for model in (computed, known):
        model.qkv.weight.mul_(4)  # so that a token attends to few, as in trained models
    graph = quantized(computed, x)
    assert torch.equal(graph(x), quantized(known, x)(x))
    assert decibels(computed(x), graph(x)) > 20
    assert "cos of constants, positions or masks" in left(graph)


class RelativePositions(nn.Module):
    """Adds a learned bias for logarithmic buckets of distances, as T5 and MPNet have it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.bias = nn.Embedding(6, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (samples, 8, 8), mixed by weights that depend on distances."""
        distance = torch.arange(8)[:, None] - torch.arange(8)[None]
        far = (torch.log(distance.abs().float() / 2) / 0.7 + 2).clamp(max=5).to(torch.int64)
        bucket = torch.where(distance.abs() < 2, distance.abs(), far)
        scores = x @ x.transpose(1, 2) + self.bias(bucket).squeeze(-1)
        mixed: Tensor = self.layer(torch.softmax(scores, -1) @ x)
        return mixed


def test_position_buckets_are_left_alone() -> None:
    """A ``log(0)`` that a ``where`` throws away is none of our business."""
    model, x = seeded(RelativePositions), values(0, 2, 8, 8)
    assert decibels(model(x), quantized(model, x)(x)) > 24


class Step(nn.Module):
    """A layer of the sinusoids of a time step, which is an integer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 4)

    def forward(self, step: Tensor) -> Tensor:
        """Return 4 values for each `step` (samples,)."""
        angles = step.float()[:, None] * torch.arange(1, 5)
        found: Tensor = self.layer(torch.cat([angles.sin(), angles.cos()], -1))
        return found


class ChosenPlaces(nn.Module):
    """Adds the position of each part that is kept; which parts are, the values of the input say."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.arange(32.0).view(8, 4))
        self.register_buffer("starts", torch.arange(1, 8) / 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x` (samples, 8, 4) with the position of each part in it, in eighths of the kept ones."""
        kept = (x.abs().amax(-1) > 0).float()
        share = (kept.cumsum(-1) - 1).clamp(min=0) / kept.sum(-1, keepdim=True)
        place = torch.bucketize(share, self.get_buffer("starts"), right=True)
        return 2 * x + nn.functional.one_hot(place, 8).float() @ self.places


def test_a_choice_that_data_make_is_no_data() -> None:
    """A share that the values of the input lead to, by way of booleans, is exact: no bucket is missed."""
    x = values(0, 3, 8, 4)
    graph = quantized(ChosenPlaces(), x)
    assert decibels(ChosenPlaces()(x), graph(x)) > 30


def test_a_layer_makes_data_of_what_depends_on_an_input() -> None:
    """The angles stay float, the layer has integers."""
    model, step = seeded(Step), torch.tensor([3, 700, 90])
    graph = quantized(model, step)
    line = next(line for line in report(graph).layers if line.path == "layer")
    assert line.weight.startswith("uint8")
    assert "mul of constants, positions or masks" in left(graph)
    assert decibels(model(step), graph(step)) > 30


class Pixels(nn.Module):
    """Scales bytes and convolves them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return 4 channels of the picture `x` (samples, 3, height, width)."""
        found: Tensor = self.conv(x.float() / 255 - 0.5)
        return found


def test_bytes_are_data() -> None:
    """What is computed from a picture of bytes is on grids."""
    x = torch.arange(2 * 3 * 6 * 6).remainder(256).to(torch.uint8).view(2, 3, 6, 6)
    graph = quantized(seeded(Pixels), x)
    assert left(graph) == {"_to_copy": 1}


class Cached(nn.Module):
    """Joins tokens to a cache that is empty at first."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, cache: Tensor) -> Tensor:
        """Return the cache with what the layer makes of `x` (samples, tokens, 4) behind it."""
        return torch.cat([cache, self.layer(x)], 1)


def test_an_empty_part_of_a_concatenation_needs_no_data() -> None:
    """It has no grid, and the report says so; the rest is quantized."""
    model, x, empty = seeded(Cached), values(0, 2, 3, 4), torch.empty(2, 0, 4)
    graph = quantized(model, x, empty)
    assert decibels(model(x, empty), graph(x, empty)) > 30


class Placed(nn.Module):
    """Puts coordinates into buckets, and finds the places of the largest scores."""

    def __init__(self) -> None:
        super().__init__()
        self.score, self.table = nn.Linear(8, 8), nn.Embedding(6, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return an entry of the table for each of `x` (samples, 8), and the places."""
        place = torch.bucketize((x * 0.5 + 0.5).clamp(0.0, 1.0).mean(-1), torch.linspace(0.0, 1.0, 6)[1:])
        return self.table(place), torch.topk(self.score(x) * 3.0, 2).indices


def test_what_only_decides_has_no_grid() -> None:
    """Coordinates are in the buckets of the float model, and the report says why; weights are integers."""
    model, x = seeded(Placed), values(0, 64, 8)
    made = quantized(model, x)
    reasons = [line.reason for line in report(made).layers if "only comparisons and indices" in line.reason]
    assert len(reasons) == 6  # mul, add, clamp, mean; the scores and their product
    score = next(line for line in report(made).layers if line.path == "score")
    assert score.weight != "float"
    assert decibels(model(x)[0], made(x)[0]) > 30


class Gate(nn.Module):
    """Negates what is not positive."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the class says of twice `x`."""
        y = x * 2.0
        return torch.where(y > 0, y, -y)


def test_a_number_that_is_needed_too_keeps_its_grid() -> None:
    """A gate compares what is also multiplied."""
    lines = report(quantized(Gate().eval(), values(0, 4, 8))).layers
    assert all("comparisons" not in line.reason for line in lines)


class LookedUp(nn.Module):
    """Rows of two tables, added and squared before a layer reads them."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.kinds = nn.Embedding(8, 4), nn.Embedding(3, 4)
        self.out = nn.Linear(4, 4)

    def forward(self, tokens: Tensor, kinds: Tensor) -> Tensor:
        """Return what the class says."""
        x = self.tokens(tokens) + self.kinds(kinds)
        found: Tensor = self.out(x * x)
        return found


def test_what_is_looked_up_in_integers_is_data() -> None:
    """A table that another algorithm has made integers is several operators, none of them an embedding."""
    tokens, kinds = torch.tensor([[1, 5, 7, 0]]), torch.tensor([[0, 2, 1, 1]])
    integers = prepare(seeded(LookedUp).eval(), PTQConfig(activation=no_quant()))
    integers(tokens, kinds)
    of_integers = quantized(convert(integers), tokens, kinds)
    of_floats = quantized(seeded(LookedUp).eval(), tokens, kinds)
    assert grids(of_integers) == grids(of_floats)
    assert "add of constants, positions or masks" not in left(of_integers)


def grids(graph: nn.Module) -> int:
    """Return the number of grids of whole tensors in a graph."""
    assert isinstance(graph.graph, torch.fx.Graph)
    return sum("quantize_per_tensor" in str(node.target) for node in graph.graph.nodes)
