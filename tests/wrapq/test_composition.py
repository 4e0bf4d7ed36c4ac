"""One run after another: each finds what the one before has left, and none undoes it unasked."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    coverage,
    prepare,
    report,
)
from tico.quantization.config import BaseConfig, ConfigError, DType, LifecycleError, affine, no_quant
from tico_quantizers import QuantizedLinear, QuantizedModule
from tico_quantizers.testing import modules_by_path, refused, same_tensors, tensors_of
from tiny_models import TOKENS, images, logits, net, tiny_llama

GPTQ = GPTQConfig(bits=4, show_progress=False)
A16 = PTQConfig(activation=affine(DType.int(16)))


def _run(model: nn.Module, config: BaseConfig, *data: Tensor) -> nn.Module:
    prepared = prepare(model, config)
    for batch in data:
        prepared(batch)
    return convert(prepared)


def _codes(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in tensors_of(model).items() if ".packed." in f".{name}"}


def test_smoothing_then_gptq_then_activations() -> None:
    """Three algorithms in a row: the codes are GPTQ's, bit for bit, and the output is near the float one."""
    model = tiny_llama()
    expected = logits(model)
    _run(model, SmoothQuantConfig(), TOKENS)
    # Smoothing moves factors between layers, and changes the output by rounding only: 2**-24 a product.
    assert torch.allclose(logits(model), expected, atol=1e-5)
    _run(model, GPTQ, TOKENS)
    codes, after_gptq = _codes(model), logits(model)
    _run(model, A16, TOKENS)
    found = _codes(model)
    assert same_tensors({name: found[name] for name in codes}, codes)
    # Activations of 16 bits and an embedding of 8 cost less than layers of 4 bits have.
    assert (logits(model) - after_gptq).abs().max() < (after_gptq - expected).abs().max()


def test_part_of_a_model_is_quantized_after_another_part() -> None:
    """What another run has left in a part stays, codes and grids, while the rest is added."""
    model = net()
    _run(model.head, GPTQ, torch.relu(torch.randn(6, 48, generator=torch.Generator().manual_seed(0))))
    codes = _codes(model)
    _run(model, PTQConfig(overrides={"head*": no_quant()}), images(0))
    assert same_tensors({name: _codes(model)[name] for name in codes}, codes)
    kinds = {path: type(module).__name__ for path, module in modules_by_path(model).items()}
    assert (kinds["conv"], kinds["head.0"]) == ("QuantizedConv2d", "QuantizedLinear")
    lines = {line.path: line for line in report(model).layers}
    assert (lines["conv"].algorithm, lines["head.0"].algorithm) == ("ptq", "gptq")


def test_part_that_holds_quantized_modules_gets_grids() -> None:
    """A part of a converted model is prepared by itself: its codes stay, the other parts are not touched."""
    model = _run(net(), GPTQ, images(0))
    codes, conv = _codes(model), model.get_submodule("conv")
    prepare(model.get_submodule("head"), PTQConfig())
    model(images(0))
    convert(model.get_submodule("head"))
    assert same_tensors(_codes(model), codes)
    assert model.get_submodule("conv") is conv
    first = model.get_submodule("head.0")
    assert isinstance(first, QuantizedLinear)
    assert first.act_in is not None


def test_converted_model_is_calibrated_again() -> None:
    """A second run on other data gives the grids of these data, as if the first had never been."""
    config = PTQConfig(
        overrides={"norm.weight": no_quant()}
    )  # an integer norm computes otherwise than before
    once = _run(net(), GPTQ, images(0))
    twice = copy.deepcopy(once)
    _run(twice, config, 100 * images(1))
    _run(twice, config, images(2))
    assert same_tensors(tensors_of(twice), tensors_of(_run(once, config, images(2))))


def test_second_run_adds_what_the_first_left_float() -> None:
    """Modules that an override kept float the first time are quantized the second time."""
    model = _run(net(), PTQConfig(overrides={"head.2": no_quant()}), images(0))
    codes = _codes(model)
    assert coverage(model).share < 1
    _run(model, PTQConfig(), images(0))
    assert same_tensors({name: _codes(model)[name] for name in codes}, codes)
    assert isinstance(model.get_submodule("head.2"), QuantizedModule)


def test_format_for_codes_that_are_there_is_refused() -> None:
    """Codes are not made twice: a rule for a weight that is integer already names what it cannot change."""
    model = _run(net(), GPTQ, images(0))
    with refused(model, ConfigError, field="overrides") as error:
        prepare(model, PTQConfig(overrides={"conv.weight": affine(DType.int(8))}))
    assert "conv.weight" in str(error.value)


@pytest.mark.parametrize("config", [GPTQ, PTQConfig()], ids=lambda config: config.name)
def test_prepared_model_is_not_prepared_again(config: BaseConfig) -> None:
    """The error says which run is not finished."""
    model = prepare(net(), config)
    with refused(model, LifecycleError, field="model") as error:
        prepare(model, PTQConfig())
    assert f"prepared with {type(config).__name__}" in str(error.value)
