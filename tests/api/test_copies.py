"""What `inplace` promises, and what a copy of a prepared model is."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from model_state import same_tensors, tensors_of, unchanged
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import BaseConfig, UnsupportedError, no_quant
from tico_quantizers import QuantizedLinear
from tiny_models import TOKENS, images, modes_of, net, tiny_llama, values

every_config = pytest.mark.parametrize(
    "config", [PTQConfig(), GPTQConfig(show_progress=False)], ids=lambda config: config.name
)
both = pytest.mark.parametrize("inplace", [True, False], ids=["inplace", "copy"])


def _result(config: BaseConfig, *seeds: int) -> dict[str, torch.Tensor]:
    model = prepare(net(), config)
    for seed in seeds:
        model(images(seed))
    return tensors_of(convert(model))


@every_config
def test_inplace_gives_the_object_back(config: BaseConfig) -> None:
    """The model that was passed in is the one that works afterwards."""
    model = net()
    assert prepare(model, config) is model
    model(images(0))
    assert convert(model) is model


@every_config
@both
@pytest.mark.parametrize("then_inplace", [True, False], ids=["inplace", "copy"])
def test_every_combination_gives_the_same_bits(config: BaseConfig, inplace: bool, then_inplace: bool) -> None:
    """Where the work is done makes no difference to the result."""
    prepared = prepare(net(), config, inplace=inplace)
    prepared(images(0))
    assert same_tensors(tensors_of(convert(prepared, inplace=then_inplace)), _result(config, 0))


@every_config
def test_prepare_on_a_copy_never_touches_the_original(config: BaseConfig) -> None:
    """Not even while the copy is calibrated and converted."""
    model = net()
    with unchanged(model):
        prepared = prepare(model, config, inplace=False)
        prepared(images(0))
        convert(prepared)


@every_config
def test_convert_on_a_copy_leaves_the_model_prepared(config: BaseConfig) -> None:
    """One calibrated model is converted many times, and goes on learning between."""
    model = prepare(net(), config)
    model(images(0))
    with unchanged(model):
        first, second = convert(model, inplace=False), convert(model, inplace=False)
    assert same_tensors(tensors_of(first), tensors_of(second))
    assert same_tensors(tensors_of(first), _result(config, 0))
    model(images(1))
    assert same_tensors(tensors_of(convert(model)), _result(config, 0, 1))


@every_config
def test_converted_copy_shares_no_storage(config: BaseConfig) -> None:
    """Writing to the copy cannot reach the prepared model."""
    model = prepare(net(), config)
    model(images(0))
    copied = convert(model, inplace=False)
    storages = {tensor.data_ptr() for tensor in (*model.parameters(), *model.buffers()) if tensor.numel()}
    own = [tensor for tensor in (*copied.parameters(), *copied.buffers()) if tensor.numel()]
    assert own
    assert not [tensor for tensor in own if tensor.data_ptr() in storages]


@every_config
def test_copy_of_a_prepared_model_is_calibrated_by_itself(config: BaseConfig) -> None:
    """What one of the two sees, the other does not."""
    model = prepare(net(), config)
    model(images(0))
    other = copy.deepcopy(model)
    other(images(1))
    model(images(2))
    assert same_tensors(tensors_of(convert(other)), _result(config, 0, 1))
    assert same_tensors(tensors_of(convert(model)), _result(config, 0, 2))


@every_config
@both
def test_lone_layer_is_replaced(config: BaseConfig, inplace: bool) -> None:
    """The replacement is returned, works, and nothing of ours stays with the layer that it replaces."""
    layer = nn.Linear(4, 3).eval()
    attributes = dict(vars(layer))
    prepared = prepare(layer, config, inplace=inplace)
    expected = layer(values(0, 5, 4))
    assert torch.equal(prepared(values(0, 5, 4)), expected)
    converted = convert(prepared, inplace=inplace)
    assert type(converted) is QuantizedLinear
    assert (converted(values(0, 5, 4)) - expected).abs().max() < 0.5
    assert vars(layer).keys() == attributes.keys()
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
def test_nothing_of_ours_is_left_behind(config: BaseConfig) -> None:
    """After convert, modules that are not ours have exactly the attributes and hooks they had."""
    model = net()
    before = {path: (tuple(vars(module)), module.training) for path, module in model.named_modules()}
    prepare(model, config)
    model(images(0))
    convert(model)
    for path in ("", "drop", "head"):
        module = model.get_submodule(path)
        assert (tuple(vars(module)), module.training) == before[path]
    assert not [m for m in model.modules() if m._forward_hooks or m._forward_pre_hooks]


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
