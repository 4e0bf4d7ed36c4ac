"""What a graph is freed of before it is quantized, and what has to stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graph_models import Function, calibrated, calls
from tico.quantization import PT2EConfig
from tico_pt2e import QuantGraph
from tiny_models import values


def graph_of(model: nn.Module, x: Tensor) -> QuantGraph:
    """Return the prepared graph of `model`, which must do what the model does.

    Folding rounds weights once more and adds in another order: a few units in the last place of float32.
    """
    graph = calibrated(model.eval(), PT2EConfig(), x)
    assert torch.allclose(graph(x), model(x), rtol=1e-5, atol=1e-5)
    return graph


def trained(norm: nn.Module) -> nn.Module:
    """Return `norm` with statistics, and with weights where it has any, that do something."""
    for number, (name, tensor) in enumerate((*norm.named_parameters(), *norm.named_buffers())):
        if tensor.is_floating_point():
            tensor.data = values(number, *tensor.shape) / 4 + (1.5 if "var" in name else 0.25)
    return norm


IMAGES, SIGNALS, ROWS = values(0, 2, 4, 6, 6), values(0, 2, 4, 8), values(0, 9, 4)
FOLDED: dict[str, tuple[nn.Module, nn.Module, Tensor]] = {
    "convolution without bias": (nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6), IMAGES),
    "norm without weights": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, affine=False), IMAGES),
    "large eps": (nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6, eps=0.75), IMAGES),
    "groups": (nn.Conv2d(4, 6, 3, groups=2), nn.BatchNorm2d(6), IMAGES),
    "one dimension": (nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6), SIGNALS),
    "linear layer": (nn.Linear(4, 6), nn.BatchNorm1d(6), ROWS),
    "transposed": (nn.ConvTranspose2d(4, 6, 3), nn.BatchNorm2d(6), IMAGES),
    "transposed with a stride": (nn.ConvTranspose2d(4, 6, 3, 2, bias=False), nn.BatchNorm2d(6), IMAGES),
}


@pytest.mark.parametrize("name", FOLDED)
def test_norm_is_folded(name: str) -> None:
    """The layer does both."""
    layer, norm, x = FOLDED[name]
    assert calls(graph_of(nn.Sequential(layer, trained(norm)), x))["batch_norm"] == 0


def _twice(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    hidden: Tensor = layer(x)
    output: Tensor = norm(hidden)
    return output + hidden


def _own_weight(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    weight = layer.get_parameter("weight") * x.mean()
    output: Tensor = norm(F.conv2d(x, weight))
    return output


def _own_mean(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    return F.batch_norm(layer(x), x.mean((2, 3))[0], norm.get_buffer("running_var"))


def _own_variance(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    return F.batch_norm(layer(x), norm.get_buffer("running_mean"), 1 + x.square().mean((2, 3))[0])


def _product(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    output: Tensor = norm(x * layer.get_parameter("weight")[:, :1, :1, :1].transpose(0, 1))
    return output


STAYS = {
    "no layer, but a constant": _product,
    "seen in between": _twice,
    "weight": _own_weight,
    "mean": _own_mean,
    "variance": _own_variance,
}


@pytest.mark.parametrize("name", STAYS)
def test_norm_stays_where_folding_it_would_change_the_function(name: str) -> None:
    """Its input is read by something else as well, or weight or statistics follow from the input."""
    model = Function(STAYS[name], layer=nn.Conv2d(4, 4, 3), norm=trained(nn.BatchNorm2d(4)))
    assert calls(graph_of(model, IMAGES))["batch_norm"] == 1


OTHERS: dict[str, nn.Module] = {
    "no layer": nn.Sequential(trained(nn.BatchNorm2d(4)), nn.Conv2d(4, 4, 3)),
    "activation function between": nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), trained(nn.BatchNorm2d(4))),
    "transposed with groups": nn.Sequential(
        nn.ConvTranspose2d(4, 6, 3, groups=2), trained(nn.BatchNorm2d(6))
    ),
    "statistics of the batch": nn.Sequential(
        nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_norm_that_no_layer_can_take_stays(name: str) -> None:
    """It follows none, or one whose channels are laid out in another way, or is no constant function."""
    found = calls(graph_of(OTHERS[name], IMAGES))
    assert sum(count for operator, count in found.items() if "batch_norm" in operator) == 1


def test_copies_are_dropped_and_other_operators_are_not() -> None:
    """What only makes a copy is gone; what has copies for its arguments reads the originals."""
    model = Function(lambda x: F.dropout(x.clone().contiguous().detach() * 2, training=False).relu())
    assert set(calls(graph_of(model, ROWS))) == {"mul", "relu"}


def test_views_take_tensors_of_any_layout() -> None:
    """A copy that made a tensor contiguous is gone, and the view behind it still works."""
    model = Function(lambda x: x.transpose(1, 2).contiguous().view(2, -1) * 2)
    graph = graph_of(model, SIGNALS)
    assert calls(graph)["view"] == 0


def test_weights_that_follow_from_the_input_are_no_constants() -> None:
    """They are left as they are, while those that follow from parameters are computed once."""

    def product(x: Tensor, layer: nn.Module) -> Tensor:
        weight = layer.get_parameter("weight")
        return F.linear(x, weight * 2) + F.linear(x, weight * x.mean())

    graph = graph_of(Function(product, layer=nn.Linear(4, 4)), ROWS)
    assert calls(graph)["mul"] == 1
    assert calls(graph)["linear"] == 2
