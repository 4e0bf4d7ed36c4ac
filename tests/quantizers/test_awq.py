"""AWQ: scales and ranges by the error of the outputs, and the integers that it leaves."""

from __future__ import annotations

import copy
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn

from smoothing_models import MODELS, converted, model_with_data, output_of, relative_difference
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    convert,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico_config import CalibrationError, ConfigError, DType
from tico_quantizers import QuantizedLinear, QuantizedModule
from tico_quantizers.solvers import ConsumerWeight
from tico_quantizers.solvers._awq import (
    Grid,
    best_scale,
    best_shares,
    magnitudes,
    rounding_error,
    scale_for,
)
from tico_quantizers.testing import (
    TorchCalls,
    calls_of,
    refused,
    same_tensors,
    sampled,
    tensors_of,
    unchanged,
)
from tiny_models import values

CONFIG = AWQConfig(bits=4, group_size=None, clip=True, show_progress=False)
ROUND_ONLY = attrs.evolve(CONFIG, n_grid=1, clip=False)
GPTQ = GPTQConfig(show_progress=False)


def _error(model: nn.Module, x: Tensor, *configs: AWQConfig | GPTQConfig) -> float:
    quantized = model
    for config in configs:
        quantized = converted(quantized, config, x)
    return float((output_of(quantized, x) - output_of(model, x)).square().mean())


def uneven(name: str) -> tuple[nn.Module, Tensor]:
    """Return a model in which some channels of the norms are much larger than others."""
    model, x = model_with_data(name)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            if "norm" in path and parameter.ndim == 1:
                parameter[::5] = 8
    return model, x


@pytest.mark.parametrize("name", ["llama", "qwen3", "gemma", "encoder", "torch encoder"])
def test_outputs_change_less_than_by_rounding_alone(name: str) -> None:
    """Where activations differ in size, the error of the model falls."""
    model, x = uneven(name)
    assert _error(model, x, CONFIG) < _error(model, x, ROUND_ONLY)


@pytest.mark.parametrize("name", MODELS)
def test_without_rounding_and_clipping_the_float_function_stays(name: str) -> None:
    """Scales alone cancel."""
    model, x = model_with_data(name)
    scaled = converted(model, attrs.evolve(CONFIG, clip=False, round_weights=False), x)
    assert relative_difference(output_of(model, x), output_of(scaled, x)) < 1e-5
    assert not any(isinstance(module, QuantizedModule) for module in scaled.modules())


def test_without_scales_and_clipping_it_is_round_to_nearest() -> None:
    """Each group gets the grid that spans its weights."""
    model, x = model_with_data("llama")
    found = converted(model, attrs.evolve(ROUND_ONLY, group_size=8), x)
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and path != "lm_head":
            layer = found.get_submodule(path)
            assert isinstance(layer, QuantizedLinear)
            nearest = QuantizedLinear.from_float(module, DType.uint(4), group_size=8)
            assert same_tensors(tensors_of(layer), tensors_of(nearest))


def test_awq_then_gptq() -> None:
    """Scaled weights are floats that GPTQ finds, and rounds better than they are rounded to nearest."""
    model, x = uneven("llama")
    scaled = attrs.evolve(CONFIG, round_weights=False, clip=False)
    assert _error(model, x, scaled, GPTQ) < _error(model, x, attrs.evolve(CONFIG, clip=False))
    layer = converted(converted(model, scaled, x), GPTQ, x).get_submodule("model.layers.0.mlp.up_proj")
    assert isinstance(layer, QuantizedLinear)
    assert layer.bits == 4


def test_awq_then_ptq_keeps_the_codes() -> None:
    """Activations get grids, the integers stay."""
    model, x = model_with_data("llama")
    once = converted(model, CONFIG, x)
    twice = converted(once, PTQConfig(), x)
    one, two = (each.get_submodule("model.layers.0.mlp.up_proj") for each in (once, twice))
    assert isinstance(one, QuantizedModule)
    assert isinstance(two, QuantizedModule)
    assert torch.equal(one.packed.codes, two.packed.codes)
    assert two.act_in is not None


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    """Bit for bit, into the float model as it was."""
    model, x = model_with_data("encoder")
    quantized = converted(model, CONFIG, x)
    save_quantized(quantized, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", copy.deepcopy(model))
    assert torch.equal(output_of(loaded, x), output_of(quantized, x))


def test_groups_may_be_ragged_where_that_is_asked_for() -> None:
    """The last group of a row is a shorter one; without scales and clipping it is rounded as any other."""
    model, x = model_with_data("llama")
    found = converted(model, attrs.evolve(ROUND_ONLY, group_size=7, ragged_groups=True), x)
    layer, linear = (each.get_submodule("model.layers.0.mlp.down_proj") for each in (found, model))
    assert isinstance(linear, nn.Linear)
    assert same_tensors(
        tensors_of(layer), tensors_of(QuantizedLinear.from_float(linear, DType.uint(4), group_size=7))
    )
    clipped = attrs.evolve(CONFIG, group_size=7, ragged_groups=True)
    assert _error(model, x, clipped) < _error(model, x, attrs.evolve(clipped, n_grid=1, clip=False))


def test_overrides_hold_for_layers() -> None:
    """Each has its own bits and groups; the head is quantized if its exact path is named."""
    model, x = model_with_data("llama")
    overrides = {"*.down_proj": {"bits": 8}, "*.q_proj": {"group_size": 4}, "lm_head": {"symmetric": True}}
    found = converted(model, attrs.evolve(CONFIG, overrides=overrides), x)
    settings = {
        path: (module.bits, module.group_size)
        for path, module in found.named_modules()
        if isinstance(module, QuantizedModule)
    }
    assert settings["model.layers.1.mlp.down_proj"] == (8, None)
    assert settings["model.layers.1.self_attn.q_proj"] == (4, 4)
    assert settings["lm_head"] == (4, None)
    assert len(settings) == 15


def test_the_report_says_scales_ranges_and_reasons() -> None:
    """For each layer, norm and module left alone."""
    model, x = model_with_data("llama")
    lines = {line.path: line for line in report(converted(model, CONFIG, x)).layers}
    up = lines["model.layers.0.mlp.up_proj"]
    assert up.weight == "uint4 asymmetric per row"
    assert up.reason.startswith(
        "columns multiplied for model.layers.0.post_attention_layernorm; channels divided"
    )
    assert {name for name, _ in up.figures} >= {"share of magnitude", "mean share of range"}
    assert lines["lm_head"].reason.startswith("the output embedding is quantized only if")
    assert lines["model.norm"].reason == "no layer that reads it is rounded"


@pytest.mark.parametrize(
    ("config", "field"),
    [
        (AWQConfig(group_size=5), "group_size"),
        (AWQConfig(overrides={"quary": {"bits": 3}}, group_size=None), "overrides"),
        (AWQConfig(overrides={"norm1": {"bits": 3}}, group_size=None), "overrides"),
    ],
)
def test_configs_that_do_not_fit_are_refused(config: AWQConfig, field: str) -> None:
    """Groups that divide no columns, rules for no layer."""
    model, _ = model_with_data("encoder")
    module = "query" if field == "group_size" else None
    with refused(model, ConfigError, field=field, module=module):
        prepare(model, config)


@pytest.mark.parametrize(
    "wrong", [{"bits": 1}, {"group_size": 0}, {"n_grid": 0}, {"clip": 1}, {"round_weights": None}]
)
def test_wrong_fields_are_refused_when_the_config_is_made(wrong: dict[str, object]) -> None:
    """Naming the field."""
    with pytest.raises(ConfigError) as error:
        AWQConfig(**wrong)  # type: ignore[arg-type]
    assert error.value.field in wrong


def test_without_data_nothing_is_converted() -> None:
    """Every layer is named."""
    model, x = model_with_data("encoder")
    prepared = prepare(model, CONFIG, args=(x,))
    with refused(prepared, CalibrationError, module="query") as error:
        convert(prepared)
    assert len(error.value.problems) == 6


def test_split_into_batches_does_not_matter() -> None:
    """The Gram matrices of whole numbers are exact."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round())
    x = (values(2, 24, 8) * 3).round()
    whole = tensors_of(converted(model, CONFIG, x))
    for size in (1, 5, 8):
        assert same_tensors(whole, tensors_of(converted(model, CONFIG, *torch.split(x, size))))


def test_the_number_of_threads_does_not_matter() -> None:
    """One and two threads leave the same bits."""
    model, x = uneven("llama")
    found = []
    for count in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            found.append(tensors_of(converted(model, attrs.evolve(CONFIG, n_grid=5), x)))
        finally:
            torch.set_num_threads(before)
    assert same_tensors(*found)


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_fault_at_any_call_changes_nothing(error: type[BaseException]) -> None:
    """While scales are searched, folded and rounded: all is as it was, and the next try succeeds."""
    model, x = model_with_data("encoder")
    quick = attrs.evolve(CONFIG, n_grid=3)
    prepared = prepare(model, quick, args=(x,))
    output_of(prepared, x)
    copied = copy.deepcopy(prepared)
    for index in sampled(calls_of(lambda: convert(copied)), 12):
        with unchanged(prepared), pytest.raises(error), TorchCalls(index, error):
            convert(prepared)
    assert same_tensors(
        tensors_of(convert(prepared)), tensors_of(converted(model_with_data("encoder")[0], quick, x))
    )


GRIDS = [
    Grid(dtype=DType.uint(3), symmetric=False, group_size=4),
    Grid(dtype=DType.int(3), symmetric=True, group_size=None),
]


def consumer(seed: int = 0) -> ConsumerWeight:
    """Return a layer of five rows that reads eight channels of different sizes."""
    x = values(seed, 64, 8) * torch.logspace(-2, 1, 8)
    return ConsumerWeight(weight=values(seed + 1, 5, 8), channels=torch.arange(8), gram=x.T @ x / 64)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.dtype))
def test_the_best_scale_is_the_best_of_the_grid(grid: Grid) -> None:
    """Its error is the smallest of all that were tried, which is the definition."""
    layer = consumer()
    share, scale = best_scale([layer], [grid], magnitudes([layer], 8), 10)
    tried = {
        step / 10: rounding_error(layer, grid, scale_for(magnitudes([layer], 8), step / 10))
        for step in range(10)
    }
    assert rounding_error(layer, grid, scale) == tried[share] == min(tried.values())
    assert share > 0


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: str(grid.dtype))
def test_the_best_share_of_a_range_is_the_best_of_the_grid(grid: Grid) -> None:
    """Group by group, as the definition says, or whole for a row that would lose by it."""
    layer = consumer()
    found = best_shares(layer.weight, layer.gram, grid)
    width = grid.width(layer.weight)
    for row in range(5):
        for group in range(found.shape[1]):
            own = slice(group * width, (group + 1) * width)
            gram = layer.gram[own, own].double()
            errors = {}
            for step in range(11):
                share = 1 - step / 20
                single = Grid(dtype=grid.dtype, symmetric=grid.symmetric, group_size=None)
                weight = layer.weight[row : row + 1, own]
                params = single.params(weight, share)
                steps = (weight / params.scale).round()
                zero = params.zero_point
                codes = steps.clamp(grid.dtype.qmin - zero, grid.dtype.qmax - zero)
                change = (codes * params.scale - weight).double()
                errors[share] = float((change @ gram @ change.T).squeeze())
            # float32 products of four to eight terms: the one found is as good up to their rounding.
            best = errors[float(found[row, group])] <= min(errors.values()) * (1 + 2**-18)
            assert best or bool((found[row] == 1).all())
    assert bool((found < 1).any())


def test_clipped_weights_span_the_range_that_was_found() -> None:
    """The grid of the clipped weights is the clipped grid, so that the next algorithm finds the same."""
    grid, weight = GRIDS[0], values(3, 5, 8)
    share = torch.full((5, 2), 0.75, dtype=torch.float64)
    clipped, wanted = grid.params(grid.clipped(weight, share)), grid.params(weight, share)
    assert torch.allclose(clipped.scale, wanted.scale)
    assert torch.equal(clipped.zero_point, wanted.zero_point)


def test_channels_without_activations_are_not_scaled() -> None:
    """And a layer that has read only zeros has scales of one."""
    assert scale_for(torch.zeros(3), 0.5).tolist() == [1, 1, 1]
    assert scale_for(torch.tensor([0.0, 4.0]), 0.5).tolist() == [1, 1]
