"""Weights that scales are folded into: in the layout that the layer has, finite, and trained as before."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from flow_models import Flow, pairs_of
from tico_config import NumericsError
from tico_quantizers import Edit
from tico_quantizers.equivalence import exact_for, fold, put_matrix
from tico_quantizers.layers import FloatLayer, as_layer, matrix
from tiny_models import values


def layer_of(module: nn.Module) -> FloatLayer:
    """Return `module` as a layer of floats."""
    layer = as_layer(module)
    assert isinstance(layer, FloatLayer)
    return layer


LAYERS = {
    "linear": nn.Linear(4, 3),
    "transposed": Conv1D(3, 4),  # type: ignore[no-untyped-call]
    "convolution": nn.Conv2d(2, 3, (1, 2)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("trained", [True, False])
def test_a_matrix_is_put_where_it_was_read(name: str, trained: bool) -> None:
    """Whatever way round the layer keeps its weight; the parameter needs a gradient if the old one did."""
    layer, new = layer_of(LAYERS[name]), values(0, 3, 4)
    layer.weight.requires_grad_(trained)
    with Edit() as edit:
        put_matrix(name, layer, new, edit)
    assert torch.equal(matrix(layer), new)
    assert layer.weight.requires_grad == trained
    assert layer.weight.is_contiguous()


@pytest.mark.parametrize("wrong", [torch.nan, torch.inf])
def test_a_matrix_that_is_not_finite_is_refused(wrong: float) -> None:
    """The error names the layer, and the layer keeps what it had."""
    layer, new = layer_of(nn.Linear(4, 3)), values(0, 3, 4)
    new[1, 2] = wrong
    before = matrix(layer).clone()
    with pytest.raises(NumericsError) as caught, Edit() as edit:
        put_matrix("here", layer, new, edit)
    assert (caught.value.module, caught.value.field) == ("here", "weight")
    assert torch.equal(matrix(layer), before)


@pytest.mark.parametrize("short", ["norm", "reader", ""])
def test_scales_are_powers_of_two_where_any_weight_is_short(short: str) -> None:
    """One weight of 16 bits is enough; otherwise a scale stays as it is."""
    x = values(0, 2, 4, 8)
    model = Flow(lambda hidden, _: hidden, x)
    (pair,) = pairs_of(model, x).pairs
    if short:
        model.get_submodule(short).bfloat16()
    scale = torch.tensor([0.3, 1.0, 3.0, 5.0, 9.0, 0.1, 1.4, 1.5])
    expected = torch.tensor([0.25, 1.0, 4.0, 4.0, 8.0, 0.125, 1.0, 2.0])
    assert torch.equal(exact_for(pair, scale), expected if short else scale)


class OffsetScale(nn.Module):
    """A module that multiplies each of eight channels by one more than its weight."""

    def __init__(self) -> None:
        """Start as the identity."""
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the scaled channels."""
        return x * (1 + self.weight)


def test_what_rounding_an_offset_weight_loses_is_made_up_for() -> None:
    """The weight keeps few digits of 1 / s beside its offset; the columns take the others.

    Without that the channels would be off by 1e5 / 2²⁵ of their size, 3e-3; each rounding is 6e-8.
    """
    model, x = nn.Sequential(OffsetScale(), nn.Linear(8, 3)), values(0, 4, 8)
    (pair,) = pairs_of(model, x).pairs
    expected: Tensor = model(x)
    with torch.no_grad(), Edit() as edit:
        fold(model, pair, torch.linspace(0.7e5, 1.3e5, 8), edit)
    assert (model(x) - expected).abs().max() < 1e-6 * expected.abs().max()
