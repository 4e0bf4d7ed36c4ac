"""What counts as calibration data, and what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    BaseConfig,
    CalibrationError,
    ConfigError,
    DType,
    NumericsError,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_config import PerChannel, PerGroup, PerToken
from tico_quantizers.testing import refused, same_tensors, tensors_of, unchanged
from tiny_models import images, net, values

GPTQ = GPTQConfig(show_progress=False)
every_config = pytest.mark.parametrize("config", [PTQConfig(), GPTQ], ids=lambda config: config.name)


class _Branches(nn.Module):
    """Two layers, of which the second is not used."""

    def __init__(self) -> None:
        super().__init__()
        self.used = nn.Linear(4, 4)
        self.unused = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        """Return the first layer's output."""
        output: Tensor = self.used(x)
        return output


def test_no_data_lists_every_point() -> None:
    """Nothing is quantized from nothing, and each place that lacks data is named."""
    model = prepare(net(), PTQConfig())
    with refused(model, CalibrationError, module="conv.act_in") as error:
        convert(model)
    points = [problem.module for problem in error.value.problems]
    layers = ("conv", "norm", "head.0", "head.1", "head.2")
    assert points == [f"{layer}.{point}" for layer in layers for point in ("act_in", "act_out")]


def test_no_data_lists_every_layer_of_gptq() -> None:
    """Rounding to nearest never passes for GPTQ."""
    model = prepare(net(), GPTQ)
    with unchanged(model), pytest.raises(CalibrationError) as error:
        convert(model)
    assert [problem.module for problem in error.value.problems] == ["conv", "head.0", "head.2"]


@every_config
def test_layer_that_never_ran_is_named(config: BaseConfig) -> None:
    """Data that reach a part of the model only are not enough."""
    model = prepare(_Branches().eval(), config)
    model(values(0, 3, 4))
    with unchanged(model), pytest.raises(CalibrationError) as error:
        convert(model)
    assert {str(problem.module).partition(".")[0] for problem in error.value.problems} == {"unused"}


def test_layer_that_never_runs_can_be_left_float() -> None:
    """An override is the way out that the error names."""
    model = prepare(_Branches().eval(), PTQConfig(overrides={"unused": no_quant()}))
    model(values(0, 3, 4))
    assert type(convert(model).get_submodule("unused")) is nn.Linear


@pytest.mark.parametrize("activation", [no_quant(), affine(DType.int(8), granularity=PerToken())], ids=str)
def test_no_data_are_needed_where_no_grid_is_static(activation: PTQConfig) -> None:
    """Weights only, and grids per token, are quantized without calibration."""
    converted = convert(prepare(net(), PTQConfig(activation=activation)))  # type: ignore[arg-type]
    assert (converted(images(0)) - net()(images(0))).abs().max() < 0.2


@pytest.mark.parametrize("config", [PTQConfig(), GPTQ], ids=lambda config: config.name)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_weight_that_is_not_finite_is_refused_by_prepare(config: BaseConfig, bad: float) -> None:
    """The error names the layer and the place, before any data are run."""
    model = net()
    with torch.no_grad():
        dict(model.named_parameters())["head.0.weight"][1, 2] = bad
    with refused(model, NumericsError, field="weight", module="head.0") as error:
        prepare(model, config)
    assert "(1, 2)" in str(error.value)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_batch_that_is_not_finite_is_refused_and_does_not_count(bad: float) -> None:
    """The batch is refused where the value first appears, and the ones before and after it count."""
    expected, model = (prepare(net(), PTQConfig()) for _ in range(2))
    for prepared in (expected, model):
        prepared(images(0))
    batch = images(1)
    batch[1, 0, 2, 3] = bad
    with refused(model, NumericsError, field="x", module="conv.act_in") as error:
        model(batch)
    assert "batch 1" in str(error.value)
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.enable_grad, torch.inference_mode])
@every_config
def test_mode_of_calibration_does_not_matter(config: BaseConfig, mode: type[torch.no_grad]) -> None:
    """The same bits come out, and the result takes part in gradients."""
    expected = prepare(net(), config)
    expected(images(0))
    model = prepare(net(), config)
    with mode():
        model(images(0))
        converted = convert(model)
    assert same_tensors(tensors_of(converted), tensors_of(convert(expected)))
    x = images(1).requires_grad_()
    converted(x).sum().backward()
    assert x.grad is not None
    assert not [buffer for buffer in converted.buffers() if buffer.is_inference()]
    converted.load_state_dict(converted.state_dict())


@every_config
def test_random_numbers_drawn_while_converting_are_given_back(config: BaseConfig) -> None:
    """Blocks that are run again may draw; the user's own sequence goes on as if they had not."""
    model = nn.Sequential(*(nn.Sequential(nn.Linear(4, 4), _Noise()) for _ in range(2))).eval()
    with torch.random.fork_rng():
        prepared = prepare(model, _without_noise(config))
        prepared(values(0, 3, 4))
        before = torch.get_rng_state()
        convert(prepared)
        assert torch.equal(torch.get_rng_state(), before)


def _without_noise(config: BaseConfig) -> BaseConfig:
    return PTQConfig(strict_wrap=False) if isinstance(config, PTQConfig) else config


class _Noise(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@every_config
def test_model_on_the_meta_device_is_refused(config: BaseConfig) -> None:
    """Every module without data is named."""
    model = net().to("meta")
    with refused(model, UnsupportedError, field="device", module="conv") as error:
        prepare(model, config)
    assert [p.module for p in error.value.problems] == ["conv", "norm", "head.0", "head.2"]


def test_prepared_model_moved_to_the_meta_device_is_refused() -> None:
    """Data that are gone cannot be quantized."""
    model = prepare(net(), PTQConfig())
    model(images(0))
    model.to("meta")
    with unchanged(model), pytest.raises(UnsupportedError) as error:
        convert(model)
    assert error.value.field == "device"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64], ids=str)
@every_config
def test_every_float_format_is_quantized_in_its_own(config: BaseConfig, dtype: torch.dtype) -> None:
    """The output keeps the model's format and is near the float one."""
    model, x = net().to(dtype), images(0).to(dtype)
    expected = model(x)
    prepare(model, config)
    model(x)
    found = convert(model)(x)
    assert found.dtype == dtype
    assert (found - expected).abs().max() < 0.4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_embedding_feeds_float_layers_in_their_format(dtype: torch.dtype) -> None:
    """Rows of an integer table come in the format of the model, also after a cast."""
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 4)).eval().to(dtype)
    prepare(model, PTQConfig(overrides={"1": no_quant()}))
    model(torch.arange(6))
    assert convert(model)(torch.arange(6)).dtype == dtype
    assert model.float()(torch.arange(6)).dtype == torch.float32


def test_rule_that_matches_nothing_is_refused_with_the_nearest_paths() -> None:
    """A typing error in a path is caught before calibration."""
    model = net()
    with refused(model, ConfigError, field="overrides") as error:
        prepare(model, PTQConfig(overrides={"haed.0": no_quant(), "nothing.like.it": no_quant()}))
    assert "'head.0'" in str(error.value)
    assert [problem.value for problem in error.value.problems] == ["haed.0", "nothing.like.it"]


def test_contradicting_rules_are_refused() -> None:
    """Two equally specific rules are both named, for every point that they meet at."""
    rules = {"he*.0": no_quant(), "*ad.0": affine(DType.int(8))}
    model = net()
    with refused(model, ConfigError, field="overrides", module="head.0.act_in") as error:
        prepare(model, PTQConfig(overrides=rules))
    assert "'*ad.0' and 'he*.0'" in str(error.value)
    points = [problem.module for problem in error.value.problems]
    assert points == ["head.0.act_in", "head.0.weight", "head.0.act_out"]


def test_formats_that_points_cannot_have_are_all_refused_by_prepare() -> None:
    """Weights per input channel and activations per group are found before calibration."""
    weight = affine(DType.uint(8), granularity=PerChannel(1))
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    activation = affine(DType.int(8), granularity=PerGroup(-1, 2))
    with refused(model, UnsupportedError, field="granularity", module="0.act_in") as error:
        prepare(model, PTQConfig(activation=activation, weight=weight))
    points = [problem.module for problem in error.value.problems]
    assert points == ["0.act_in", "0.weight", "0.act_out", "1.act_in", "1.act_out"]


@every_config
def test_model_without_a_layer_to_quantize_is_refused(config: BaseConfig) -> None:
    """A model that would come back unchanged is an error."""
    model = nn.Sequential(nn.Flatten(), nn.Identity())
    with unchanged(model), pytest.raises(ConfigError) as error:
        prepare(model, config)
    assert error.value.field == "model"


@every_config
def test_part_that_is_called_by_itself_is_calibrated(config: BaseConfig) -> None:
    """The data a part sees count like those that reach it through the model."""
    whole, parts = (prepare(net(), config) for _ in range(2))
    for seed in (0, 1):
        whole(images(seed))
        hidden = parts.get_submodule("norm")(parts.get_submodule("conv")(images(seed)))
        parts.get_submodule("head")(hidden.flatten(1))
    assert same_tensors(tensors_of(convert(parts)), tensors_of(convert(whole)))


@every_config
def test_part_that_is_refused_does_not_stand_in_the_way(config: BaseConfig) -> None:
    """After a part was called with data that are no numbers, good data count alone."""
    expected, model = (prepare(net(), config) for _ in range(2))
    with unchanged(model), pytest.raises(NumericsError):
        model.get_submodule("head")(values(0, 3, 48) / 0)
    for each in (expected, model):
        each.get_submodule("head")(values(1, 3, 48))
        each(images(0))
    assert same_tensors(tensors_of(convert(model)), tensors_of(convert(expected)))
