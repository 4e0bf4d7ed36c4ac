"""Each operator of the table: quantized, near the float result, and in the report."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graph_models import Function, calls, decibels, quantized
from tico.quantization import convert, prepare, report
from tico_config import PT2EConfig
from tico_quantizers import LayerReport
from tiny_models import values

Make = Callable[[], tuple[nn.Module, tuple[Tensor, ...]]]


def layer(kind: Callable[[], nn.Module], *shape: int, then: Callable[[Tensor], object] | None = None) -> Make:
    """Return what makes a layer, and an activation function behind it, with an input."""

    def make() -> tuple[nn.Module, tuple[Tensor, ...]]:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            inner = kind()
        if then is None:
            return inner.eval(), (values(0, *shape),)
        after = then
        return Function(lambda x, inner: after(inner(x)), inner=inner).eval(), (values(0, *shape),)

    return make


def function(made: object, *shapes: tuple[int, ...]) -> Make:
    """Return what makes a function with its inputs."""
    return lambda: (Function(made).eval(), tuple(values(seed, *shape) for seed, shape in enumerate(shapes)))


OPERATORS: dict[str, Make] = {
    "linear": layer(lambda: nn.Linear(8, 6), 5, 8),
    "conv1d + relu": layer(lambda: nn.Conv1d(3, 4, 3), 2, 3, 9, then=F.relu),
    "conv2d + hardtanh": layer(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.ReLU6(inplace=True)), 2, 3, 9, 9
    ),
    "conv2d + hardswish": layer(lambda: nn.Conv2d(4, 4, 3, groups=2), 2, 4, 9, 9, then=F.hardswish),
    "conv2d": layer(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)), 2, 3, 9, 9),
    "conv_transpose1d": layer(lambda: nn.ConvTranspose1d(3, 4, 3), 2, 3, 5),
    "conv_transpose2d": layer(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2), 2, 4, 5, 5),
    "matmul": function(torch.matmul, (2, 4, 8), (2, 8, 5)),
    "bmm": function(torch.bmm, (2, 4, 8), (2, 8, 5)),
    "add": function(lambda x, y: x + y, (4, 8), (4, 8)),
    "add + relu": function(lambda x, y: F.relu(x + y), (4, 8), (4, 8)),
    "sub": function(lambda x, y: x - y, (4, 8), (4, 8)),
    "mul": function(lambda x, y: x * y, (4, 8), (4, 8)),
    "div": function(lambda x, y: x / y, (4, 8), (1, 1)),
    "cat": function(lambda x, y: torch.cat([x, y], 1), (4, 8), (4, 3)),
    "mean": function(lambda x: x.mean((2, 3)), (2, 4, 6, 6)),
    "adaptive_avg_pool2d": layer(lambda: nn.AdaptiveAvgPool2d(2), 2, 4, 6, 6),
    "avg_pool2d": layer(lambda: nn.AvgPool2d(2), 2, 4, 6, 6),
    "relu": function(F.relu, (4, 8)),
    "relu6": function(F.relu6, (4, 8)),
    "leaky_relu": function(F.leaky_relu, (4, 8)),
    "sigmoid": function(torch.sigmoid, (4, 8)),
    "tanh": function(torch.tanh, (4, 8)),
    "silu": function(F.silu, (4, 8)),
    "gelu": function(F.gelu, (4, 8)),
    "softmax": function(lambda x: torch.softmax(x, -1), (4, 8)),
    "layer_norm": layer(lambda: nn.LayerNorm(8), 4, 8),
    "rms_norm": layer(lambda: nn.RMSNorm(8), 4, 8),
    "rsqrt": function(lambda x: torch.rsqrt(x * x + 1), (4, 8)),
    "neg": function(lambda x: -x, (4, 8)),
    "abs": function(torch.abs, (4, 8)),
    "pow": function(lambda x: x**2, (4, 8)),
}


class Collection(nn.Module):
    """All operators in one model, so that it is exported once."""

    def __init__(self, models: list[nn.Module]) -> None:
        """Keep the models."""
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs: list[tuple[Tensor, ...]]) -> list[Tensor]:
        """Return what each model makes of its inputs."""
        return [model(*given) for model, given in zip(self.models, inputs, strict=True)]


@pytest.fixture(scope="module")
def results() -> dict[str, tuple[list[LayerReport], float]]:
    """Quantize all operators; return for each the lines about it, and the decibels to the float result."""
    made = [make() for make in OPERATORS.values()]
    model, inputs = Collection([model for model, _ in made]).eval(), [inputs for _, inputs in made]
    config = PT2EConfig(dynamic_shapes={}, quantize_output_concat=True)
    prepared = prepare(model, config, args=(inputs,), inplace=False)
    prepared(inputs)
    graph = convert(prepared)
    found: dict[str, tuple[list[LayerReport], float]] = {}
    for index, (name, want, got) in enumerate(zip(OPERATORS, model(inputs), graph(inputs), strict=True)):
        lines = [line for line in report(graph).layers if f"{line.path}.".startswith(f"models.{index}.")]
        found[name] = lines, decibels(want, got)
    return found


@pytest.mark.parametrize("name", OPERATORS)
def test_operator_has_grids_and_stays_near_the_float_one(
    name: str, results: dict[str, tuple[list[LayerReport], float]]
) -> None:
    """Its line in the report names a grid for the result; 8 bits of each value leave well over 25 dB."""
    lines, distance = results[name]
    (line,) = [line for line in lines if line.module == name]
    assert "act_out uint8 asymmetric" in line.activation
    # A step is 1/255 of the range, which is 4 to 6 standard deviations: about 45 dB, less for small ranges.
    assert distance > 25


def test_embedding_keeps_its_rows_as_codes() -> None:
    """Rows have a grid each, and the vectors that are read one for all."""
    model, tokens = nn.Embedding(11, 8), torch.tensor([[1, 3, 10]])
    graph = quantized(model, PT2EConfig(), tokens)
    codes = dict(graph.named_buffers())
    assert codes["weight_codes"].dtype == torch.uint8
    assert codes["weight_scale"].shape == (11,)
    assert decibels(model(tokens), graph(tokens)) > 35


MOVES: tuple[Callable[[Tensor], Tensor], ...] = (
    lambda x: x.transpose(1, 2),
    lambda x: x.reshape(2, -1),
    lambda x: x.unsqueeze(1).expand(-1, 3, -1, -1),
    lambda x: x[:, 1:, ::2],
    lambda x: F.pad(x, (1, 1)),
    lambda x: F.max_pool1d(x, 2),
    lambda x: torch.split(torch.cat(x.chunk(2, 1), 2), 6, 2)[1],
    lambda x: torch.unflatten(x.flatten(1), 1, (4, 6)),
)


def test_shape_operators_have_the_grid_of_their_input() -> None:
    """What only moves values, or takes the largest, changes no bit of them and has the same grid."""

    def moved(x: Tensor) -> list[Tensor]:
        y = torch.relu(x)
        return [y, *(move(y) for move in MOVES)]

    graph = quantized(Function(moved), PT2EConfig(), values(3, 2, 4, 6))
    before, *results = graph(values(3, 2, 4, 6))
    for move, result in zip(MOVES, results, strict=True):
        assert torch.equal(result, move(before))
    scales = {node.args[1] for node in graph.graph.nodes if "quantize_per_tensor" in str(node.target)}
    # That of the input and that of everything else; joining values of one range gives the same one again.
    assert len(scales) == 2


def test_attention_is_taken_apart() -> None:
    """Both products and the softmax have grids; the sum with the mask, which holds -inf, stays float."""
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    qkv = tuple(values(seed, 2, 3, 5, 8) for seed in range(3))
    model = Function(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=mask))
    graph = quantized(model, PT2EConfig(), *qkv)
    assert calls(graph)["matmul"] == 2
    assert decibels(model(*qkv), graph(*qkv)) > 30
    left = report(graph).layers[0]
    assert (left.path, dict(left.figures)) == ("", {"masked_fill": 1.0, "masked_fill before softmax": 1.0})


def test_other_operators_are_counted() -> None:
    """What the table does not know stays float, and the report says how often it occurs."""
    model = Function(lambda x: torch.cumsum(torch.cumsum(torch.relu(x), 1).sin(), 1))
    graph = quantized(model, PT2EConfig(), values(0, 4, 8))
    left = report(graph).layers[0]
    assert (left.reason, left.figures) == ("operators left in float", (("cumsum", 2.0), ("sin", 1.0)))
