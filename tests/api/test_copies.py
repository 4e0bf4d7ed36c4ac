"""What `inplace` promises, and what a copy of a prepared model is."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import BaseConfig, UnsupportedError, no_quant
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import unchanged
from tiny_models import TOKENS, images, modes_of, net, tiny_llama, values

every_config = pytest.mark.parametrize(
    "config", [PTQConfig(), GPTQConfig(show_progress=False)], ids=lambda config: config.name
)
both = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "copy"])


@every_config
@both
def test_lone_layer_is_replaced(config: BaseConfig, inplace: bool) -> None:
    """The replacement is returned and works; the layer that it replaces keeps what replaced it, no more."""
    layer = nn.Linear(4, 3).eval()
    attributes = dict(vars(layer))
    prepared = prepare(layer, config, inplace=inplace)
    expected = layer(values(0, 5, 4))
    assert torch.equal(prepared(values(0, 5, 4)), expected)
    converted = convert(prepared, inplace=inplace)
    assert type(converted) is QuantizedLinear
    assert (converted(values(0, 5, 4)) - expected).abs().max() < 0.5
    assert vars(layer).keys() - attributes.keys() == ({"_tico_replaced"} if inplace else set())
    assert not layer._forward_hooks
    assert not layer._forward_pre_hooks


def test_model_that_cannot_be_copied_is_refused() -> None:
    """The error says how to go on without a copy."""
    model = net()
    vars(model)["generator"] = (number for number in range(3))
    with unchanged(model), pytest.raises(UnsupportedError, match="inplace=True") as error:
        prepare(model, PTQConfig(), inplace=False)
    assert error.value.field == "model"


@every_config
def test_gradients_and_modes_are_left_alone(config: BaseConfig) -> None:
    """What the caller has frozen stays frozen, what he has not stays trainable."""
    model = net()
    model.norm.weight.requires_grad_(False)
    model.head[1].train()
    prepare(model, PTQConfig(overrides={"norm": no_quant()}) if isinstance(config, PTQConfig) else config)
    model(images(0))
    convert(model)
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    assert {flag for name, flag in flags.items() if name.startswith("norm") and name.endswith("weight")} == {
        False
    }
    assert {flag for name, flag in flags.items() if name.startswith("norm") and name.endswith("bias")} == {
        True
    }
    assert model.head[1].training
    assert not model.head[0].training


@every_config
def test_modes_below_a_module_that_is_taken_apart_are_left_alone(config: BaseConfig) -> None:
    """A part that the caller has set to training by itself stays so."""
    model = tiny_llama()
    part = model.get_submodule("model.layers.0.mlp.gate_proj")
    part.train()
    before = modes_of(model)
    prepare(model, config)
    assert {path: modes_of(model)[path] for path in before} == before
    model(TOKENS)
    convert(model)
    assert {path: modes_of(model)[path] for path in before} == before
