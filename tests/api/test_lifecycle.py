"""The order of calls: what may follow what, and what is said where it may not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    Registry,
    convert,
    prepare,
    report,
)
from tico.quantization.config import BaseConfig, ConfigError, LifecycleError, UnsupportedError
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import modules_by_path, refused, same_tensors, state_of, tensors_of, unchanged
from tiny_models import TOKENS, images, logits, net, tiny_llama, values

GPTQ = GPTQConfig(show_progress=False)
CONFIGS = (PTQConfig(), GPTQ)

every_config = pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config.name)


def _converted(model: nn.Module, config: BaseConfig) -> nn.Module:
    prepared = prepare(model, config)
    prepared(images(0))
    return convert(prepared)


@every_config
def test_prepare_refuses_a_prepared_model(config: BaseConfig) -> None:
    """Preparing twice says with what the model is prepared."""
    model = prepare(net(), config)
    with refused(model, LifecycleError, field="model") as error:
        prepare(model, PTQConfig())
    assert type(config).__name__ in str(error.value)


@every_config
def test_prepare_refuses_a_model_with_a_prepared_part(config: BaseConfig) -> None:
    """A part that is being calibrated is named."""
    model = net()
    prepare(model.head, config)
    with refused(model, LifecycleError, field="model", module="head"):
        prepare(model, PTQConfig())


@every_config
@pytest.mark.parametrize("other", CONFIGS, ids=lambda config: config.name)
def test_prepare_refuses_a_part_of_a_prepared_model(config: BaseConfig, other: BaseConfig) -> None:
    """Two algorithms never watch one module."""
    model = net()
    prepare(model, config)
    with unchanged(model), pytest.raises(LifecycleError) as error:
        prepare(model.head, other)
    assert error.value.field == "model"
    assert "part of a prepared model" in str(error.value)


def test_convert_before_prepare_is_refused() -> None:
    """The way out is named."""
    model = net()
    with refused(model, LifecycleError, field="model") as error:
        convert(model)
    assert "call prepare(model, config) first" in str(error.value)


def test_convert_of_the_whole_names_the_prepared_part() -> None:
    """A model whose part is prepared is told apart from one that is not prepared at all."""
    model = net()
    prepare(model.head, PTQConfig())
    with refused(model, LifecycleError, field="model") as error:
        convert(model)
    assert "model.head" in str(error.value)


@every_config
def test_convert_twice_is_refused(config: BaseConfig) -> None:
    """A converted model is said to be one."""
    model = _converted(net(), config)
    with refused(model, LifecycleError, field="model") as error:
        convert(model)
    assert "converted already" in str(error.value)


@every_config
def test_equal_config_is_accepted_by_convert(config: BaseConfig) -> None:
    """An equal config need not be the same object."""
    model = prepare(net(), config)
    model(images(0))
    again = type(config)() if isinstance(config, PTQConfig) else GPTQConfig(show_progress=False)
    assert isinstance(modules_by_path(convert(model, again))["head.0"], QuantizedLinear)


@pytest.mark.parametrize("other", [GPTQ, PTQConfig(strict_wrap=False), {}, PTQConfig], ids=str)
def test_another_config_is_refused_by_convert(other: BaseConfig) -> None:
    """Both configs are named, and the calibration is not lost."""
    model = prepare(net(), PTQConfig())
    model(images(0))
    with refused(model, ConfigError, field="quant_config") as error:
        convert(model, other)
    assert repr(PTQConfig()) in str(error.value)
    convert(model)


@pytest.mark.parametrize("wrong", [None, {}, nn.Linear, "model"], ids=str)
def test_prepare_and_convert_refuse_what_is_no_module(wrong: nn.Module) -> None:
    """A class, a dict or nothing at all is no model."""
    with refused(None, UnsupportedError, field="model"):
        prepare(wrong, PTQConfig())
    with refused(None, UnsupportedError, field="model"):
        convert(wrong)


@pytest.mark.parametrize("wrong", [None, {}, PTQConfig, "ptq"], ids=str)
def test_prepare_refuses_what_is_no_config(wrong: BaseConfig) -> None:
    """A config class is not a config."""
    model = net()
    with refused(model, ConfigError, field="quant_config"):
        prepare(model, wrong)


def test_prepare_names_every_wrong_argument() -> None:
    """All arguments of a wrong type are reported at once."""
    model = net()
    wrong: dict[str, object] = {"args": torch.ones(1), "kwargs": [1], "inplace": 1, "registry": {}}
    with refused(model, ConfigError, field="args") as error:
        prepare(model, PTQConfig(), **wrong)  # type: ignore[arg-type]
    assert [problem.field for problem in error.value.problems] == list(wrong)


def test_convert_refuses_an_inplace_that_is_no_bool() -> None:
    """What was meant is asked for, not guessed."""
    model = prepare(net(), PTQConfig())
    with refused(model, ConfigError, field="inplace"):
        convert(model, inplace="yes")  # type: ignore[arg-type]


def test_config_without_quantizer_is_refused() -> None:
    """A registry that lacks the algorithm says what it has."""
    model = net()
    with refused(model, UnsupportedError, field="quant_config"):
        prepare(model, PTQConfig(), registry=Registry())


def test_gptq_then_ptq_keeps_the_codes() -> None:
    """PTQ gives grids to the activations of what GPTQ has quantized, and leaves its weights alone."""
    model = tiny_llama()
    prepare(model, GPTQ)
    model(TOKENS)
    convert(model)
    codes = {name: codes for name, codes in tensors_of(model).items() if ".packed." in name}
    prepare(model, PTQConfig())
    model(TOKENS)
    convert(model)
    after = tensors_of(model)
    assert len(codes) > 14
    assert same_tensors({name: after[name] for name in codes}, codes)
    projection = model.model.layers[0].self_attn.q_proj
    assert isinstance(projection, QuantizedLinear)
    assert projection.act_in is not None
    assert projection.bits == 4


def test_ptq_then_gptq_keeps_the_grids_of_activations() -> None:
    """GPTQ quantizes the weights that it finds, integer ones too, and leaves the activations alone."""
    model = _converted(net(), PTQConfig())
    before = tensors_of(model)
    prepare(model, GPTQ)
    model(images(0))
    convert(model)
    after = tensors_of(model)
    grids = {name: grid for name, grid in before.items() if ".act_" in name or name.startswith("norm.")}
    assert grids
    assert same_tensors({name: after[name] for name in grids}, grids)
    assert modules_by_path(model)["head.0"].bits == 4


@pytest.mark.parametrize("make", [net, tiny_llama], ids=["net", "llama"])
def test_ptq_on_ptq_calibrates_again(make: type[nn.Module]) -> None:
    """The codes stay; every grid is the one that the newest data determine."""
    data = images(0) if make is net else TOKENS
    once, twice = make(), make()
    for model in (once, twice):
        prepare(model, PTQConfig())
        model(data)
        convert(model)
    prepare(twice, PTQConfig())
    twice(data)
    convert(twice)
    codes = {name for name in tensors_of(once) if ".packed." in name}
    first, second = tensors_of(once), tensors_of(twice)
    assert first.keys() == second.keys()
    assert same_tensors({n: first[n] for n in codes}, {n: second[n] for n in codes})
    assert state_of(once).keys() == state_of(twice).keys()


def test_ptq_on_ptq_forgets_the_grids_of_before() -> None:
    """A model calibrated again on wider data does not clip them."""
    model = prepare(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), PTQConfig())
    x = values(0, 8, 4)
    model(x)
    convert(model)
    prepare(model, PTQConfig())
    model(100 * x)
    convert(model)
    scales = {name: scale for name, scale in tensors_of(model).items() if name.endswith(".scale")}
    moved = {name for name in scales if "act_in" in name or "act_out" in name}
    assert len(moved) == 4
    assert all(scales[name].item() > 0.1 for name in moved)


def test_every_run_is_in_the_report() -> None:
    """The newest run speaks for a module; what it left alone is told by the one before."""
    model = _converted(net(), GPTQ)
    prepare(model, PTQConfig(overrides={"conv": {"dtype": PTQConfig().weight.dtype}}))
    model(images(0))
    convert(model)
    lines = {line.path: line for line in report(model).layers}
    assert (lines["conv"].algorithm, lines["conv"].weight) == ("ptq", "uint4 per row, codes kept")
    assert lines["drop"].reason == "it does nothing in evaluation mode"


def test_prepared_llama_still_computes_the_float_function() -> None:
    """Watching changes no bit of the output, where the attention is not fused anyway."""
    model = tiny_llama(attention="eager")
    expected = logits(model)
    for config in CONFIGS:
        assert torch.equal(logits(prepare(model, config, inplace=False)), expected)


def test_module_replaced_after_prepare_is_refused() -> None:
    """Nobody is told that a layer is integer which the caller has put a float one in the place of."""
    model = prepare(net(), PTQConfig())
    model(images(0))
    vars(model)["_modules"]["conv"] = nn.Conv2d(2, 3, 3, padding=1)
    with refused(model, LifecycleError, field="model", module="conv"):
        convert(model)
