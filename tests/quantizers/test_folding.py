"""Weights that scales are folded into: in the layout that the layer has, finite, and trained as before."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from tico_config import NumericsError
from tico_quantizers import Edit
from tico_quantizers.equivalence import put_matrix
from tico_quantizers.layers import FloatLayer, as_layer, matrix
from tiny_models import values


def layer_of(module: nn.Module) -> FloatLayer:
    """Return `module` as a layer of floats."""
    layer = as_layer(module)
    assert isinstance(layer, FloatLayer)
    return layer


LAYERS = {"linear": nn.Linear(4, 3), "transposed": Conv1D(3, 4), "convolution": nn.Conv2d(2, 3, (1, 2))}


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
