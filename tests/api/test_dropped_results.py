"""What prepare or convert returned for a lone layer, and the caller did not keep: there is a way on."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tico.quantization import GPTQConfig, PTQConfig, SmoothQuantConfig, convert, prepare, report
from tico.quantization.config import BaseConfig, ConfigError, LifecycleError
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import modules_by_path, refused, unchanged
from tiny_models import values

GPTQ = GPTQConfig(show_progress=False)
PLACES = ("fc", "inner.0")

every_config = pytest.mark.parametrize(
    "config", [PTQConfig(), GPTQ, SmoothQuantConfig(insert_mul=True)], ids=lambda config: config.name
)
every_place = pytest.mark.parametrize("path", PLACES)


class _Whole(nn.Module):
    """A model with a layer under a name, and one under a number."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 4)
        self.inner = nn.Sequential(nn.Linear(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output: torch.Tensor = self.inner(self.fc(x))
        return output


def _prepared_part(path: str, config: BaseConfig) -> nn.Module:
    """Return a calibrated model whose part at `path` alone is prepared."""
    model = _Whole().eval()
    model.set_submodule(path, prepare(model.get_submodule(path), config))
    model(values(0, 8, 4))
    return model


def _obey(error: LifecycleError, model: nn.Module, config: BaseConfig) -> None:
    """Run the statement that the error gives as the way on."""
    statement = str(error.problems[0].remedy).removeprefix("call ").partition(", which")[0]
    statement = statement.removesuffix(" first").partition(" with the same")[0]
    names: dict[str, object] = {"convert": convert, "prepare": prepare, "model": model, "config": config}
    exec(statement, names)  # noqa: S102  # the error's own words


@every_config
@every_place
def test_converting_a_replaced_layer_again_gives_the_same(config: BaseConfig, path: str) -> None:
    """The result that was dropped is not lost."""
    model = _prepared_part(path, config)
    first = convert(model.get_submodule(path))
    assert convert(model.get_submodule(path)) is first
    assert convert(model.get_submodule(path), config) is first
    copied = convert(model.get_submodule(path), inplace=False)
    assert copied is not first
    assert torch.equal(copied(values(1, 3, 4)), first(values(1, 3, 4)))


def test_the_config_is_checked_the_second_time_too() -> None:
    """The dropped result is that of one config."""
    model = _prepared_part("fc", GPTQ)
    convert(model.get_submodule("fc"))
    with refused(model, ConfigError, field="quant_config"):
        convert(model.get_submodule("fc"), PTQConfig())


@every_config
@every_place
def test_the_whole_says_which_part_is_not_in_place(config: BaseConfig, path: str) -> None:
    """The statement in the error mends it; then the whole is a converted model."""
    model = _prepared_part(path, config)
    convert(model.get_submodule(path))
    with refused(model, LifecycleError, field="model") as caught:
        convert(model)
    assert f"convert has returned another module for the part {path!r}" in str(caught.value)
    assert len(caught.value.problems) == 1
    _obey(caught.value, model, config)
    with refused(model, LifecycleError, field="model") as caught:
        convert(model)
    assert "converted already" in str(caught.value)
    assert [line.path for line in report(model).layers if line.algorithm] == [path]


@every_place
def test_a_wrapper_left_in_place_is_told_by_prepare(path: str) -> None:
    """The model is not stuck between "not prepared" and "part of a prepared model"."""
    model = _prepared_part(path, PTQConfig())
    convert(model.get_submodule(path))
    with refused(model, LifecycleError, field="model", module=path) as caught:
        prepare(model, PTQConfig())
    _obey(caught.value, model, PTQConfig())
    converted = _run(prepare(model, PTQConfig()))
    assert all(isinstance(modules_by_path(converted)[each], QuantizedLinear) for each in PLACES)


@every_place
def test_a_float_layer_left_in_place_is_told_by_prepare(path: str) -> None:
    """It is what it is, a float layer; the caller, who may think otherwise, is warned."""
    model = _prepared_part(path, GPTQ)
    convert(model.get_submodule(path))
    with pytest.warns(UserWarning, match=f"another module for the part '{path}'.*taken as float") as caught:
        prepare(model, PTQConfig())
    assert caught[0].filename == __file__
    assert isinstance(_run(model).get_submodule(path), QuantizedLinear)


@every_place
def test_dropped_result_of_prepare_is_returned_again(path: str) -> None:
    """The same config gives the same replacement; the errors of all other calls say so."""
    model, config = _Whole().eval(), PTQConfig()
    first = prepare(model.get_submodule(path), config)
    layer = model.get_submodule(path)
    told = "prepare has returned another module"
    with unchanged(model), pytest.raises(LifecycleError, match=told):
        convert(layer)
    with unchanged(model), pytest.raises(LifecycleError, match=told):
        prepare(layer, GPTQ)
    with unchanged(model), pytest.raises(LifecycleError, match=told):
        prepare(layer, config, inplace=False)
    with unchanged(model), pytest.raises(LifecycleError) as caught:
        prepare(model, GPTQ)
    assert caught.value.module == path
    with refused(model, LifecycleError, field="model") as caught:
        convert(model)
    _obey(caught.value, model, config)
    assert model.get_submodule(path) is first
    model(values(0, 8, 4))
    model.set_submodule(path, convert(model.get_submodule(path)))
    assert isinstance(model.get_submodule(path), QuantizedLinear)


@every_config
def test_layer_that_was_replaced_may_start_anew(config: BaseConfig) -> None:
    """The float layer is the caller's: other configs may be tried on it, and results do not mix."""
    layer = nn.Linear(4, 4).eval()
    results = [_run(prepare(layer, config)) for _ in range(2)]
    assert results[0] is not results[1]
    assert convert(layer) is results[1] or isinstance(config, PTQConfig)
    assert torch.equal(results[0](values(1, 3, 4)), results[1](values(1, 3, 4)))


@every_config
def test_part_of_a_prepared_model_is_no_model_of_its_own(config: BaseConfig) -> None:
    """Neither call claims that it is not prepared, and both name the same way on."""
    model = prepare(_Whole().eval(), config)
    told = "a part of a prepared model; call convert"
    with unchanged(model), pytest.raises(LifecycleError, match=told):
        convert(model.get_submodule("fc"))
    with unchanged(model), pytest.raises(LifecycleError, match=told):
        prepare(model.get_submodule("fc"), GPTQ)


@every_config
def test_several_prepared_parts_are_named_at_once(config: BaseConfig) -> None:
    """Each with its statement; following them converts the whole."""
    model = _Whole().eval()
    for path in PLACES:
        model.set_submodule(path, prepare(model.get_submodule(path), config))
    model(values(0, 8, 4))
    for left in (2, 1):
        with refused(model, LifecycleError, field="model") as caught:
            convert(model)
        assert len(caught.value.problems) == left
        _obey(caught.value, model, config)
    with refused(model, LifecycleError, field="model") as caught:
        convert(model)
    assert "converted already" in str(caught.value)


def test_a_failed_conversion_leaves_no_trace_of_a_replacement() -> None:
    """What was not converted is prepared still."""
    layer = prepare(nn.Linear(4, 4).eval(), PTQConfig())
    with unchanged(layer), pytest.raises(RuntimeError, match="calibration data"):
        convert(layer)
    layer(values(0, 8, 4))
    assert isinstance(convert(layer), QuantizedLinear)


def _run(prepared: nn.Module) -> nn.Module:
    prepared(values(0, 8, 4))
    return convert(prepared)
