"""What passes the scale of a channel on, and what does not: each function between two layers by itself."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from flow_models import SHAPE, Between, Flow, pairs_of, scaled
from tico.quantization import SmoothQuantConfig, prepare
from tico_config import ConfigError
from tico_quantizers.testing import refused, same_tensors, tensors_of
from tiny_models import values

X = values(0, *SHAPE)
ROWS, COLUMNS, ALL = values(1, 4, 1), values(2, 8, 8), values(3, *SHAPE)
WIDE, SQUARE = values(4, 3, *SHAPE), values(5, 2, 5, 4)


def heads(x: Tensor, count: int) -> Tensor:
    """Return (2, `count`, 4, 8 / `count`)."""
    return torch.unflatten(x, -1, (count, -1)).transpose(1, 2)


def whole(x: Tensor) -> Tensor:
    """Return (2, 4, features): the heads of `x` side by side."""
    return x.transpose(1, 2).flatten(2)


def channels_first(x: Tensor) -> Tensor:
    """Return (2, 8, 4)."""
    return x.transpose(1, 2)


def image(x: Tensor) -> Tensor:
    """Return (2, 8, 2, 2)."""
    return torch.unflatten(channels_first(x), -1, (2, 2))


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Return the attention, where queries may have more heads than values."""
    return F.scaled_dot_product_attention(query, key, value, enable_gqa=True)


PASSED: dict[str, Between] = {
    "view": lambda x, _: x.view(8, 8),
    "view of another shape of its own": lambda x, _: x.view(2, 2, 2, 8).reshape(4, 16),
    "view_as": lambda x, _: x.view_as(ALL.view(8, 8)),
    "reshape_as": lambda x, _: x.reshape_as(ALL.view(8, 8)),
    "flatten": lambda x, _: x.flatten(),
    "unflatten": lambda x, _: torch.unflatten(x, 0, (1, 2)),
    "squeeze": lambda x, _: x.unsqueeze(1).squeeze(1),
    "to": lambda x, _: x.to(torch.float64).to(torch.float32),
    "float": lambda x, _: x.double().float(),
    "type": lambda x, _: x.type(torch.float64).type(torch.float32),
    "type asked for": lambda x, _: x if x.type() else -x,
    "clone": lambda x, _: x.clone().contiguous().cpu().detach(),
    "relu": lambda x, _: torch.relu(x),
    "relu in place": lambda x, _: torch.relu_(x),
    "leaky relu": lambda x, _: F.leaky_relu(x, 0.3),
    "dropout": lambda x, _: F.dropout(x, 0.5, training=False),
    "neg": lambda x, _: -x,
    "transpose": lambda x, _: x.transpose(0, 1),
    "permute": lambda x, _: x.permute(1, 0, 2),
    "channels elsewhere and back": lambda x, _: x.movedim(-1, 0).swapaxes(0, 2),
    "t": lambda x, _: x[0].t().t(),
    "expand": lambda x, _: x.unsqueeze(0).expand(3, -1, -1, -1),
    "expand_as": lambda x, _: x.expand_as(WIDE),
    "repeat": lambda x, _: x.repeat(1, 1, 2),
    "flip": lambda x, _: x.flip(-1),
    "repeat_interleave": lambda x, _: x.repeat_interleave(2, -1),
    "some of the channels": lambda x, _: x[..., 1:6:2],
    "rows by a mask": lambda x, _: x[torch.tensor([True, False])],
    "chunk": lambda x, _: x.chunk(2, -1)[0],
    "split": lambda x, _: torch.split(x, 3, -1)[1],
    "narrow": lambda x, _: x.narrow(-1, 2, 3),
    "select": lambda x, _: x.select(1, 2),
    "unbind": lambda x, _: x.unbind(0)[1],
    "index_select": lambda x, _: x.index_select(-1, torch.tensor([7, 0, 3])),
    "mul": lambda x, _: x * ALL,
    "mul from the left": lambda x, _: 3 * x,
    "mul by keyword": lambda x, _: torch.mul(x, other=ALL),
    "mul that grows": lambda x, _: torch.multiply(x, WIDE),
    "div": lambda x, _: x / ALL,
    "div that grows": lambda x, _: torch.div(x, WIDE),
    "matmul": lambda x, _: SQUARE @ x,
    "matmul by keyword": lambda x, _: torch.matmul(SQUARE, other=x),
    "matmul that grows": lambda x, _: SQUARE[0] @ x,
    "bmm": lambda x, _: torch.bmm(SQUARE, x),
    "attention": lambda x, _: attention(ALL, ALL, x),
    "attention of one sequence": lambda x, _: F.scaled_dot_product_attention(ALL[0], ALL[0], x[0]),
    "attention with heads": lambda x, _: whole(attention(heads(ALL, 2), heads(ALL, 2), heads(x, 2))),
    "attention with shared heads": lambda x, _: whole(
        attention(heads(ALL, 2), heads(ALL[..., :4], 1), heads(x[..., 2:6], 1))
    ),
    "max_pool1d": lambda x, _: channels_first(F.max_pool1d(channels_first(x), 2)),
    "avg_pool1d": lambda x, _: channels_first(F.avg_pool1d(channels_first(x), 3, 1, 1)),
    "adaptive_max_pool1d": lambda x, _: channels_first(F.adaptive_max_pool1d(channels_first(x), 3)),
    "max_pool2d": lambda x, _: F.max_pool2d(image(x), 2).flatten(1),
    "avg_pool2d": lambda x, _: F.avg_pool2d(image(x), (1, 2)).flatten(1),
    "adaptive_avg_pool2d": lambda x, _: F.adaptive_avg_pool2d(image(x), 1).flatten(1),
    "mean": lambda x, _: x.mean(1),
    "mean that keeps axes": lambda x, _: torch.mean(x, dim=(0, 1), keepdim=True),
    "cat of parts": lambda x, _: torch.cat([x[:, :2], x[:, 1:], x.flip(1)], dim=1),
    "cat of features": lambda x, _: torch.cat(tensors=[x, x.flip(-1)], dim=-1),
    "cat of rows": lambda x, _: torch.concat([x, x]),
    "cat to nothing": lambda x, _: torch.cat([torch.empty(2, 0, 8), x], dim=1),
}


@pytest.mark.parametrize("name", PASSED)
def test_scales_pass_through(name: str) -> None:
    """The norm is paired with the layer behind the function, and scales that cancel change no bit."""
    model = Flow(PASSED[name], X)
    assert [pair.path for pair in pairs_of(model, X).pairs] == ["norm"]
    smooth = scaled(model, X, seed=0)
    assert torch.equal(smooth(X), model(X))
    assert not same_tensors(tensors_of(smooth), tensors_of(model))


BROKEN: dict[str, tuple[Between, str]] = {
    "add": (lambda x, _: x + ALL, "add"),
    "sigmoid": (lambda x, _: x.sigmoid(), "sigmoid"),
    "sum": (lambda x, _: x.sum(-1, keepdim=True), "sum"),
    "other bits": (lambda x, _: x.view(torch.int32).view(torch.float32), "view"),
    "bits of another float": (lambda x, _: x.double().view(torch.complex64).real, "view"),
    "bits of a float of another kind": (lambda x, _: x.half().view(torch.bfloat16).float(), "view"),
    "integers": (lambda x, _: x.to(torch.int32).to(torch.float32), "to"),
    "integer type": (lambda x, _: x.type(torch.int32).float(), "type"),
    "shape of a view": (lambda x, _: ALL.view(8, 8).view_as(x), "view_as"),
    "shape of an expansion": (lambda x, _: ALL.expand_as(x), "expand_as"),
    "flip by keyword": (lambda x, _: torch.flip(input=x, dims=(0,)), "flip"),
    "transpose as a property": (lambda x, _: x.mT, "get"),
    "square": (lambda x, _: x * x, "mul"),
    "joined to what was computed before": (lambda x, _: torch.cat([x, x, ALL], 1), "cat"),
    "moved into another tensor": (
        lambda x, _: torch.index_select(x, 1, torch.tensor([2, 0]), out=torch.empty(0)),
        "index_select",
    ),
    "joined in another tensor": (lambda x, _: torch.cat([x, x], out=torch.empty(0)), "cat"),
    "joined to others": (lambda x, _: torch.cat([x, ALL]), "cat"),
    "joined after others": (lambda x, _: torch.cat([ALL, x]), "cat"),
    "only its emptiness": (lambda x, _: torch.cat([x[:0], ALL]), "cat"),
    "overwritten by a product": (lambda x, _: torch.mul(ALL, 2, out=x), "mul"),
    "overwritten by a quotient": (lambda x, _: torch.div(ALL, 2, out=x), "div"),
    "overwritten by a mean": (lambda x, _: torch.mean(ALL, 1, out=x[:, 0]), "mean"),
    "taken as numbers": (lambda x, _: ALL * len(x.tolist()), "tolist"),
    "reciprocal": (lambda x, _: ALL / x, "div"),
    "ratio to itself": (lambda x, _: x / x.abs().clamp(min=1), "abs"),
    "division rounded down": (lambda x, _: torch.div(x, 0.5, rounding_mode="floor"), "div"),
    "columns mixed": (lambda x, _: x @ COLUMNS, "matmul"),
    "columns mixed by rows": (lambda x, _: SQUARE.mT @ SQUARE @ x.transpose(1, 2)[:, :4], "matmul"),
    "vector": (lambda x, _: COLUMNS @ x[0, 0], "matmul"),
    "rows mixed by a vector": (lambda x, _: ROWS[:, 0] @ x, "matmul"),
    "keys": (lambda x, _: attention(ALL, x, ALL), "scaled_dot_product_attention"),
    "keys and values": (lambda x, _: attention(ALL, x, x), "scaled_dot_product_attention"),
    "values mixed": (
        lambda x, _: attention(values(6, 2, 5, 3), values(7, 2, 8, 3), channels_first(x)),
        "scaled_dot_product_attention",
    ),
    "average of features": (lambda x, _: F.avg_pool1d(x, 2), "avg_pool1d"),
    "largest of features": (lambda x, _: F.adaptive_max_pool1d(x, 4), "adaptive_max_pool1d"),
    "image with features for rows": (lambda x, _: F.avg_pool2d(x.mT, 2), "get"),
    "average of rows and features": (lambda x, _: F.avg_pool2d(x.transpose(1, 2), 2), "avg_pool2d"),
    "mean of features": (lambda x, _: x.mean(-1, keepdim=True), "mean"),
    "mean of two features": (lambda x, _: torch.unflatten(x, -1, (4, 2)).mean(-1), "mean"),
    "mean of all": (lambda x, _: x.mean().view(1), "mean"),
    "mean by keyword": (lambda x, _: torch.mean(input=x, dim=1), "mean"),
    "mean in another type": (lambda x, _: x.mean(-1, keepdim=True, dtype=torch.float32), "mean"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_scales_do_not_pass_through(name: str) -> None:
    """The norm is left alone, the reason names the function, and the function stays."""
    between, reader = BROKEN[name]
    model = Flow(between, X)
    found = pairs_of(model, X)
    assert found.left["norm"] == f"its output is read by {reader}"
    assert found.pairs == ()


@pytest.mark.parametrize(
    "between",
    [lambda x, _: F.avg_pool1d(x, 2), lambda _, y: ALL @ y.transpose(-2, -1)],
    ids=["pooled features", "scores"],
)
def test_smoothquant_refuses_what_mixes_channels(between: Between) -> None:
    """A model whose only layers have something between them that mixes their channels has no pair."""
    model = Flow(between, X).eval()
    with refused(model, ConfigError, field="model"):
        prepare(model, SmoothQuantConfig(), args=(X,))


OF_TWO: dict[str, tuple[Between, list[str]]] = {
    "product": (lambda x, y: x * y, ["linear"]),
    "gate of a mixture": (lambda x, y: y * x[..., :1], ["norm"]),
    "ratio": (lambda x, y: x / y, []),
    "joined": (lambda x, y: torch.cat([x, y], -1), []),
    "scores": (lambda x, y: x @ y.transpose(-2, -1), []),
    "mixed rows": (lambda x, y: x.transpose(1, 2) @ y, ["linear"]),
    "values of an attention": (lambda x, y: attention(x, ALL, y), ["linear"]),
    "sum": (lambda x, y: x + y, []),
}


@pytest.mark.parametrize("name", OF_TWO)
def test_of_two_sources_one_may_pass(name: str) -> None:
    """What is proportional to each of both is taken for the second; the other is left alone."""
    between, expected = OF_TWO[name]
    model = Flow(between, X)
    assert [pair.path for pair in pairs_of(model, X).pairs] == expected
    assert torch.equal(scaled(model, X, seed=1)(X), model(X))


def test_mean_of_many_features_in_few_bits() -> None:
    """The numbers of channels are averaged exactly, whatever type the mean of the values is asked for in."""

    class Wide(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.reader = nn.LayerNorm(512), nn.Linear(1, 3)

        def forward(self, x: Tensor) -> Tensor:
            near = self.norm(x)[..., 255:258].mean(-1, keepdim=True, dtype=torch.bfloat16)
            output: Tensor = self.reader(near.float())
            return output

    assert pairs_of(Wide(), values(0, 2, 512)).pairs == ()
