"""SmoothQuant on models: the function stays, the ranges move, and what follows is quantized better."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from language_models import WIKI_LLAMA, load, logits_of, text_of
from smoothing_models import MODELS, converted, model_with_data, output_of, relative_difference
from tico.quantization import (
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    load_quantized,
    prepare,
    report,
    save_quantized,
)
from tico.quantization.config import DType, affine, no_quant
from tico_config import CalibrationError, ConfigError, NumericsError
from tico_observers import load_statistics, save_statistics
from tico_quantizers import Edit, QuantizedLinear, ScaledInput, SmoothQuantQuantizer
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

CONFIGS = [SmoothQuantConfig(alpha=alpha) for alpha in (0.0, 0.5, 0.9, 1.0, "auto")]
GPTQ = GPTQConfig(show_progress=False)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: str(config.alpha))
@pytest.mark.parametrize("name", MODELS)
def test_the_float_function_stays(name: str, config: SmoothQuantConfig) -> None:
    """Within 1e-5 of the largest output: every weight of a pair is rounded once more to float32."""
    model, x = model_with_data(name)
    smooth = converted(model, config, x)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5
    assert not same_tensors(tensors_of(model), tensors_of(smooth))


def test_the_function_of_a_trained_model_stays() -> None:
    """The embedded LLaMA, on text that it has not seen."""
    language = load(WIKI_LLAMA, 128)
    windows = language.windows(text_of("heldout"), 512)
    smooth = converted(language.model, SmoothQuantConfig(alpha=0.8), windows[:2])
    before, after = logits_of(language.model, windows[2:]), logits_of(smooth, windows[2:])
    assert relative_difference(before, after) < 1e-5


def _linear(model: nn.Module, path: str) -> nn.Linear:
    found = model.get_submodule(path)
    assert isinstance(found, nn.Linear)
    return found


def _input_maximum(model: nn.Module, path: str, x: Tensor) -> Tensor:
    seen: list[Tensor] = []
    handle = _linear(model, path).register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    output_of(model, x)
    handle.remove()
    return seen[0].flatten(0, -2).abs().amax(0)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_ranges_are_balanced_as_equation_4_says(alpha: float) -> None:
    """A channel's input reaches (max|X| max|W|) to the power of 1 - alpha, its weight that of alpha."""
    model, x = model_with_data("encoder")
    smooth = converted(model, SmoothQuantConfig(alpha=alpha), x)
    inputs, weight = _input_maximum(model, "linear1", x), _linear(model, "linear1").weight.abs().amax(0)
    expected = (inputs * weight) ** (1 - alpha)
    assert torch.allclose(_input_maximum(smooth, "linear1", x), expected, rtol=1e-5)
    assert torch.allclose(
        _linear(smooth, "linear1").weight.abs().amax(0), (inputs * weight) ** alpha, rtol=1e-5
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_channels_of_zeros_keep_their_scale(alpha: float) -> None:
    """Where inputs or weights are all zero there is nothing to balance, and nothing becomes NaN."""
    model, x = model_with_data("encoder")
    with torch.no_grad():
        model.get_parameter("norm2.weight")[1] = 0
        model.get_parameter("norm2.bias")[1] = 0
        model.get_parameter("linear1.weight")[:, 2] = 0
    smooth = converted(model, SmoothQuantConfig(alpha=alpha), x)
    for kept in (1, 2):
        for path, index in (("norm2.weight", kept), ("linear1.weight", (slice(None), kept))):
            assert smooth.get_parameter(path)[index].equal(model.get_parameter(path)[index])
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


def with_outliers(name: str = "llama") -> tuple[nn.Module, Tensor]:
    """Return a model with large input channels in its MLP, of unchanged function: norm up, columns down."""
    model, x = model_with_data(name)
    with torch.no_grad():
        for layer in ("model.layers.0", "model.layers.1"):
            model.get_parameter(f"{layer}.post_attention_layernorm.weight")[3] *= 256
            for reader in ("gate_proj", "up_proj"):
                model.get_parameter(f"{layer}.mlp.{reader}.weight")[:, 3] /= 256
            model.get_parameter(f"{layer}.mlp.up_proj.weight")[5] *= 256
            model.get_parameter(f"{layer}.mlp.down_proj.weight")[:, 5] /= 256
    return model, x


def _error_after_ptq(model: nn.Module, x: Tensor, *before: SmoothQuantConfig | GPTQConfig) -> float:
    quantized = model
    inputs = {"*_proj.act_in": affine(DType.uint(8))}
    for config in before:
        quantized = converted(quantized, config, x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # outliers take the range, which is what this is about
        quantized = converted(quantized, PTQConfig(activation=no_quant(), overrides=inputs), x)
    return float((output_of(quantized, x) - output_of(model, x)).square().mean())


@pytest.mark.parametrize("alpha", [0.5, 0.8, "auto"])
def test_outliers_no_longer_spoil_the_activations(alpha: float) -> None:
    """With inputs of 8 bits per tensor, the error of a model with outliers falls to less than a quarter."""
    model, x = with_outliers()
    smoothed = _error_after_ptq(model, x, SmoothQuantConfig(alpha=alpha))
    assert smoothed < _error_after_ptq(model, x) / 4


def test_the_search_takes_an_alpha_of_its_own_for_each_pair() -> None:
    """It is in the report, between 0 and 1."""
    model, x = with_outliers()
    found = {
        line.path: dict(line.figures)
        for line in report(converted(model, SmoothQuantConfig(alpha="auto"), x)).layers
    }
    alphas = [figures["alpha"] for figures in found.values() if "alpha" in figures]
    assert len(alphas) == 9
    assert all(0 <= alpha <= 1 for alpha in alphas)
    assert len(set(alphas)) > 1


def test_smoothquant_then_gptq_then_ptq() -> None:
    """What each leaves is what the next one starts from."""
    model, x = with_outliers()
    assert _error_after_ptq(
        model, x, SmoothQuantConfig(), GPTQConfig(bits=8, show_progress=False)
    ) < _error_after_ptq(model, x)
    three = converted(converted(converted(model, SmoothQuantConfig(), x), GPTQ, x), PTQConfig(), x)
    layer = three.get_submodule("model.layers.0.mlp.down_proj")
    assert isinstance(layer, QuantizedLinear)
    assert layer.bits == 4
    assert layer.act_in is not None


def test_a_smoothed_and_quantized_model_can_be_saved(tmp_path: Path) -> None:
    """Loading it into the float model as it was before gives the same bits."""
    model, x = with_outliers()
    quantized = converted(converted(model, SmoothQuantConfig(), x), GPTQ, x)
    save_quantized(quantized, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", copy.deepcopy(model))
    assert torch.equal(output_of(loaded, x), output_of(quantized, x))


def test_short_floats_are_multiplied_by_powers_of_two() -> None:
    """In bfloat16 no weight is rounded again: the smoothed model gives the same bits."""
    model, x = model_with_data("encoder")
    model, x = model.bfloat16(), x.bfloat16()
    smooth = converted(model, SmoothQuantConfig(), x)
    assert torch.equal(output_of(smooth, x), output_of(model, x))
    assert not same_tensors(tensors_of(model), tensors_of(smooth))


INSERTED = SmoothQuantConfig(alpha=0.75, insert_mul=True)


@pytest.mark.parametrize("name", MODELS)
def test_with_multiplications_the_float_function_stays(name: str) -> None:
    """Every layer that is no reader of a pair gets one in front of it."""
    model, x = model_with_data(name)
    smooth = converted(model, INSERTED, x)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


def test_a_multiplication_takes_the_scale_that_nothing_else_can(tmp_path: Path) -> None:
    """What follows quantizes the layer behind it, and what is saved is loaded into the float model."""
    model = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval()
    x = values(1, 4, 8) * torch.logspace(-2, 2, 8)
    smooth = converted(model, INSERTED, x)
    assert isinstance(smooth.get_submodule("2"), ScaledInput)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5
    assert report(smooth).layers[0].reason == "columns multiplied, and the input by the inverse"
    quantized = converted(converted(smooth, GPTQ, x), PTQConfig(), x)
    layer = quantized.get_submodule("2.layer")
    assert isinstance(layer, QuantizedLinear)
    assert layer.act_in is not None
    save_quantized(quantized, tmp_path / "saved")
    loaded = load_quantized(tmp_path / "saved", copy.deepcopy(model))
    assert torch.equal(output_of(loaded, x), output_of(quantized, x))


def test_a_lone_layer_gets_a_multiplication() -> None:
    """It replaces the model as a whole."""
    model, x = nn.Linear(8, 4).eval(), values(1, 4, 8) * torch.logspace(-2, 2, 8)
    smooth = converted(model, INSERTED, x)
    assert isinstance(smooth, ScaledInput)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


def test_overrides_name_a_module_of_the_pair() -> None:
    """The source or a reader; the other pairs keep the default."""
    model, x = model_with_data("encoder")
    for path in ("norm2", "linear1"):
        lines = report(converted(model, SmoothQuantConfig(overrides={path: {"alpha": 0.75}}), x)).layers
        alphas = {line.path: dict(line.figures).get("alpha") for line in lines}
        assert (alphas["norm2"], alphas["norm1"]) == (0.75, 0.5)


@pytest.mark.parametrize(
    ("overrides", "module"),
    [
        ({"query": {"alpha": 0.1}, "key": {"alpha": 0.2}}, "norm1"),
        ({"nrom1": {"alpha": 0.1}}, None),
        ({"linear2": {"alpha": 0.1}}, None),
    ],
)
def test_overrides_that_do_not_fit_are_refused(
    overrides: dict[str, dict[str, float]], module: str | None
) -> None:
    """Two for one pair, none such module, a module in no pair."""
    model, x = model_with_data("encoder")
    with refused(model, ConfigError, field="overrides", module=module):
        prepare(model, SmoothQuantConfig(overrides=overrides), args=(x,))


@pytest.mark.parametrize("given", [True, False], ids=["example", "first pass"])
def test_pairs_come_from_the_example_or_from_the_first_pass(given: bool) -> None:
    """Either way the result is the same."""
    model, x = model_with_data("llama")
    prepared = prepare(model, SmoothQuantConfig(), args=(x,) if given else None, inplace=False)
    output_of(prepared, x)
    assert same_tensors(tensors_of(convert(prepared)), tensors_of(converted(model, SmoothQuantConfig(), x)))


@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_calibrating_changes_no_output(alpha: float) -> None:
    """A prepared model gives the same bits."""
    model, x = model_with_data("llama")
    prepared = prepare(model, SmoothQuantConfig(alpha=alpha), inplace=False)
    for _ in range(2):
        assert torch.equal(output_of(prepared, x), output_of(model, x))


@pytest.mark.parametrize("alpha", [0.5, "auto"])
def test_split_and_order_of_the_batches_do_not_matter(alpha: float) -> None:
    """Maxima are commutative, and the Gram matrices of whole numbers exact, whatever their order."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_((parameter * 8).round())
    x = (values(2, 24, 8) * 3).round()
    config = SmoothQuantConfig(alpha=alpha)
    whole = tensors_of(converted(model, config, x))
    assert same_tensors(whole, tensors_of(converted(model, config, *torch.split(x, 1))))
    assert same_tensors(whole, tensors_of(converted(model, config, *torch.split(x.flip(0), 5))))


@pytest.mark.parametrize("alpha", [0.3, "auto"])
def test_the_number_of_threads_does_not_matter(alpha: float) -> None:
    """One and two threads leave the same bits."""
    model, x = model_with_data("llama")
    found = []
    for count in (1, 2):
        before = torch.get_num_threads()
        torch.set_num_threads(count)
        try:
            found.append(tensors_of(converted(model, SmoothQuantConfig(alpha=alpha), x)))
        finally:
            torch.set_num_threads(before)
    assert same_tensors(*found)


def test_statistics_can_be_saved_and_merged(tmp_path: Path) -> None:
    """Two halves of the data, merged, are the whole; a file holds them bit for bit."""
    model, x = model_with_data("encoder")
    found = []
    for parts in ([x, -x], [x], [-x]):
        watched = copy.deepcopy(model)
        with Edit() as edit:
            watched, prepared = SmoothQuantQuantizer(SmoothQuantConfig()).start(watched, None, edit)
        for part in parts:
            output_of(watched, part)
        found.append(prepared.calibration.maxima.statistics)
    whole, one, two = found
    assert {path: one[path].merge(two[path]) for path in one} == whole
    save_statistics(tmp_path / "maxima", whole)
    assert load_statistics(tmp_path / "maxima") == whole


def test_without_data_nothing_is_converted() -> None:
    """Neither where the pairs are known, nor where they are not."""
    model, x = model_with_data("encoder")
    for args, module in ((None, "query"), ((x,), "out")):
        prepared = prepare(model, SmoothQuantConfig(), args=args, inplace=False)
        with refused(prepared, CalibrationError, module=module):
            convert(prepared)
        output_of(prepared, x)
        assert isinstance(convert(prepared), nn.Module)


def test_data_that_are_not_finite_are_refused() -> None:
    """The pass raises, and is not counted."""
    model, x = model_with_data("encoder")
    prepared = prepare(model, SmoothQuantConfig(), args=(x,), inplace=False)
    bad = x.clone()
    bad[0, 0, 0] = torch.inf
    with pytest.raises(NumericsError):
        output_of(prepared, bad)
    output_of(prepared, x)
    assert same_tensors(tensors_of(convert(prepared)), tensors_of(converted(model, SmoothQuantConfig(), x)))


def test_weights_that_would_overflow_are_refused() -> None:
    """A float16 weight cannot hold what a huge scale makes of it; the prepared model stays as it is."""
    model, x = model_with_data("encoder")
    model, x = model.half(), x.half()
    with torch.no_grad():
        model.get_parameter("norm2.bias")[:2] = 6e4
        model.get_parameter("linear1.weight")[:, :2] = 0
        model.get_parameter("linear1.weight")[0, :2] = torch.tensor([2.0, -2.0])
    prepared = prepare(model, SmoothQuantConfig(alpha=1), args=(x,), inplace=False)
    output_of(prepared, x)
    with refused(prepared, NumericsError, field="weight", module="linear1"):
        convert(prepared)


def test_the_report_names_pairs_scales_and_reasons() -> None:
    """What takes part says in which pair; what does not says why."""
    model, x = model_with_data("encoder")
    lines = {line.path: line for line in report(converted(model, SmoothQuantConfig(), x)).layers}
    assert lines["norm1"].reason == "channels divided for query, key, value"
    assert lines["value"].reason == "columns multiplied for norm1; channels divided for out"
    assert lines["linear2"].reason == "its output is read by add"
    assert dict(lines["norm1"].figures)["largest scale"] > 0
    assert {line.algorithm for line in lines.values()} == {"smoothquant"}


def test_hooks_and_modules_of_the_user_stay() -> None:
    """Only parameters are replaced, and `requires_grad` is kept."""
    model, x = model_with_data("encoder")
    model.get_parameter("norm1.weight").requires_grad_(False)
    calls: list[str] = []
    model.get_submodule("linear1").register_forward_hook(lambda *_: calls.append("linear1"))
    modules = dict(model.named_modules())
    smooth = prepare(model, SmoothQuantConfig(), args=(x,))
    output_of(smooth, x)
    convert(smooth)
    calls.clear()
    output_of(smooth, x)
    assert calls == ["linear1"]
    assert dict(smooth.named_modules()) == modules
    assert not smooth.get_parameter("norm1.weight").requires_grad
    assert smooth.get_parameter("norm2.weight").requires_grad


@pytest.mark.parametrize("error", [KeyboardInterrupt, MemoryError])
def test_a_fault_at_any_call_changes_nothing(error: type[BaseException]) -> None:
    """While pairs are found and while scales are folded: all is as it was, and the next try succeeds."""
    model, x = model_with_data("encoder")
    config = SmoothQuantConfig(alpha="auto")
    copied = copy.deepcopy(model)
    for index in sampled(calls_of(lambda: prepare(copied, config, args=(x,))), 12):
        with unchanged(model), pytest.raises(error), TorchCalls(index, error):
            prepare(model, config, args=(x,))
    prepared = prepare(model, config, args=(x,))
    output_of(prepared, x)
    copied = copy.deepcopy(prepared)
    for index in sampled(calls_of(lambda: convert(copied)), 25):
        with unchanged(prepared), pytest.raises(error), TorchCalls(index, error):
            convert(prepared)
    assert same_tensors(
        tensors_of(convert(prepared)), tensors_of(converted(model_with_data("encoder")[0], config, x))
    )
