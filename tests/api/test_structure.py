"""Models of unusual shape: shared, tied, deep, wide, oddly named, with outputs of every kind."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations
from transformers.models.llama.modeling_llama import LlamaMLP

from tico.quantization import GPTQConfig, PTQConfig, convert, prepare, report
from tico.quantization.config import (
    BaseConfig,
    ConfigError,
    DType,
    QScheme,
    UnsupportedError,
    affine,
    no_quant,
)
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import modules_by_path, refused
from tiny_models import TOKENS, tiny_llama, values

GPTQ = GPTQConfig(show_progress=False)
every_config = pytest.mark.parametrize("config", [PTQConfig(), GPTQ], ids=lambda config: config.name)


class _Parts(nn.ModuleDict):
    """Calls all of its parts, one after the other."""

    def forward(self, x: Tensor) -> Tensor:
        for part in self.values():
            x = part(x)
        return x


class _First(nn.ModuleList):
    """Calls the first of its parts only."""

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self[0](x)
        return output


def _quantized(model: nn.Module, config: BaseConfig, x: Tensor) -> nn.Module:
    prepared = prepare(model.eval(), config)
    prepared(x)
    return convert(prepared)


@every_config
def test_shared_layer_stays_shared(config: BaseConfig) -> None:
    """One layer at two places is quantized once and stands at both."""
    layer = nn.Linear(4, 4)
    model = nn.Sequential(layer, nn.ReLU(), nn.Sequential(layer))
    expected = model(values(0, 9, 4))
    converted = _quantized(model, config, values(0, 9, 4))
    found = modules_by_path(converted)
    assert found["0"] is found["2.0"]
    assert isinstance(found["0"], QuantizedLinear)
    assert (converted(values(0, 9, 4)) - expected).abs().max() < 0.3


def test_tied_embeddings_share_their_codes() -> None:
    """A weight that embedding and head share is quantized once, and both grow no apart."""
    model = _quantized(tiny_llama(tied=True), PTQConfig(), TOKENS)
    found = modules_by_path(model)
    assert found["lm_head.packed"] is found["model.embed_tokens.packed"]


def test_weights_no_longer_tied_are_reported() -> None:
    """Where an override sets one of two tied weights apart, both lines of the report say so."""
    config = PTQConfig(overrides={"lm_head.weight": {"qscheme": QScheme.PER_TENSOR_ASYMM}})
    model = _quantized(tiny_llama(tied=True), config, TOKENS)
    notes = {line.path: line.reason for line in report(model).layers}
    assert notes["lm_head"] == notes["model.embed_tokens"]
    assert notes["lm_head"] == "no longer tied: one weight of model.embed_tokens, lm_head"


@every_config
@pytest.mark.parametrize(
    "name", ["ключ", "a b", "layers[0]", "*", "re:x", "weight", "layer", "module", "packed"]
)
def test_odd_names_are_names(config: BaseConfig, name: str) -> None:
    """A module is found by whatever name its parent gives it."""
    model = _Parts({name: nn.Sequential(nn.Linear(4, 4))})
    converted = _quantized(model, config, values(0, 3, 4))
    assert isinstance(modules_by_path(converted)[f"{name}.0"], QuantizedLinear)
    assert [line.path for line in report(converted).layers if line.weight != "float"] == [f"{name}.0"]


def test_override_takes_a_path_with_wildcards_literally() -> None:
    """A path that looks like a pattern still names its module."""
    model = _Parts({"a[0]": nn.Linear(4, 4), "b": nn.Linear(4, 4)})
    converted = _quantized(model, PTQConfig(overrides={"a[0]": no_quant()}), values(0, 3, 4))
    assert type(modules_by_path(converted)["a[0]"]) is nn.Linear


@pytest.fixture
def deep_stack() -> nn.Module:
    """Return a linear layer in a thousand containers, with room on the stack to run it."""
    model: nn.Module = nn.Linear(2, 2)
    for _ in range(1_000):
        model = nn.Sequential(model)
    return model


@every_config
def test_a_thousand_levels_are_prepared_in_seconds(config: BaseConfig, deep_stack: nn.Module) -> None:
    """Neither recursion nor paths that grow stop or slow down what is deep."""
    for module in _modules(deep_stack):
        module.training = False
    limit = sys.getrecursionlimit()
    start = time.perf_counter()
    prepare(deep_stack, config)
    sys.setrecursionlimit(20_000)
    try:
        deep_stack(torch.ones(1, 2))
    finally:
        sys.setrecursionlimit(limit)
    convert(deep_stack)
    assert time.perf_counter() - start < 20
    assert isinstance(_modules(deep_stack)[-1], QuantizedLinear)


def _modules(model: nn.Module) -> list[nn.Module]:
    found = [model]
    while isinstance(found[-1], nn.Sequential):
        found.append(found[-1][0])
    return found


@every_config
@pytest.mark.filterwarnings("ignore:one channel or part")  # two channels, of which one may well be small
def test_time_grows_with_the_number_of_modules(config: BaseConfig) -> None:
    """Eight times the modules take nowhere near sixty-four times as long."""
    times = {}
    for count in (125, 1_000):
        model = nn.Sequential(*(nn.Linear(2, 2) for _ in range(count))).eval()
        start = time.process_time()
        _quantized(model, config, torch.ones(1, 2))
        times[count] = time.process_time() - start
    assert times[1_000] < 40 * times[125]


@attrs.frozen
class _Pair:
    first: Tensor
    second: Tensor


OUTPUTS: dict[str, Callable[[Tensor], object]] = {
    "tuple": lambda y: (y, None),
    "list": lambda y: [y],
    "dict": lambda y: {"logits": y, 3: "text"},
    "object": lambda y: _Pair(y, y),
    "nothing": lambda y: None,
    "generator": lambda y: (part for part in y),
}


@every_config
@pytest.mark.parametrize("kind", OUTPUTS)
def test_output_of_any_kind_goes_through(config: BaseConfig, kind: str) -> None:
    """What the model returns is not looked at."""

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> object:
            return OUTPUTS[kind](self.fc(x))

    model = Model().eval()
    expected = type(model(values(0, 3, 4)))
    prepare(model, config)
    assert type(model(values(0, 3, 4))) is expected
    convert(model)
    assert type(model(values(0, 3, 4))) is expected


class _Doubling(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        return 2 * super().forward(input)


class _Mlp(LlamaMLP):
    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # transformers' is untyped
        return 2 * output


class _Halving(nn.Identity):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        return input / 2


def _patched() -> nn.Module:
    layer = nn.Linear(4, 4)
    layer.forward = lambda x: x  # type: ignore[method-assign, assignment]
    return layer


REFUSED: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "replaced forward": (_patched, "its forward was replaced on the instance"),
    "parametrized": (lambda: parametrizations.weight_norm(nn.Linear(4, 4)), "computed from other parameters"),
    "lazy": (lambda: nn.LazyLinear(4), "no weight before its first call"),
    "complex": (lambda: nn.Linear(4, 4, dtype=torch.complex64), "torch.complex64"),
    "empty": (lambda: nn.Linear(4, 0), "of shape (0, 4)"),
    "renormalized": (lambda: nn.Embedding(4, 4, max_norm=1.0), "max_norm"),
    "indices": (lambda: nn.MaxPool1d(2, return_indices=True), "returns indices"),
    "attention of two widths": (lambda: nn.MultiheadAttention(4, 2, kdim=6), "a width of their own"),
    "attention with keys": (lambda: nn.MultiheadAttention(4, 2, add_zero_attn=True), "keys of its own"),
    "encoder": (
        lambda: nn.TransformerEncoderLayer(4, 2, 8, activation=torch.tanh),
        "no module, relu or gelu",
    ),
    "lstm": (lambda: nn.LSTM(4, 4), "it has no wrapper"),
    "gru": (lambda: nn.GRU(4, 4), "it has no wrapper"),
    "gru cell": (lambda: nn.GRUCell(4, 4), "computed in one kernel"),
}


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings(
    "ignore:Lazy modules", "ignore:Initializing zero-element", "ignore:Complex modules"
)
def test_layer_that_integers_cannot_replace_is_refused(kind: str) -> None:
    """What an integer layer would compute otherwise is an error with the reason, not a wrong number."""
    make, reason = REFUSED[kind]
    model = nn.Sequential(nn.Linear(4, 4), make())
    with refused(model, UnsupportedError, module="1") as error:
        prepare(model, PTQConfig())
    assert reason in str(error.value)
    assert len(error.value.problems) == 1


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.filterwarnings(
    "ignore:Lazy modules", "ignore:Initializing zero-element", "ignore:Complex modules"
)
def test_layer_that_is_refused_stays_float_where_that_is_allowed(kind: str) -> None:
    """Without strict_wrap it is left exactly as it is, and the report gives the reason."""
    make, reason = REFUSED[kind]
    layer = make().eval()
    model = _First([nn.Linear(4, 4), layer]).eval()
    converted = _quantized(model, PTQConfig(strict_wrap=False), values(0, 3, 4))
    assert modules_by_path(converted)["1"] is layer
    assert reason in {line.path: line.reason for line in report(converted).layers}["1"]


def test_mlp_of_another_formula_is_refused() -> None:
    """A subclass of a wrapped class that computes something else would lose it in the wrapper."""
    config = tiny_llama().config
    model = nn.Sequential(_Mlp(config)).eval()  # type: ignore[no-untyped-call]  # transformers' is untyped
    with refused(model, UnsupportedError, module="0") as error:
        prepare(model, PTQConfig(steps="declared"))
    assert "a forward of its own" in str(error.value)


@pytest.mark.parametrize(("make", "points"), [(lambda: _Doubling(4, 4), 2), (_Halving, 1)])
def test_layer_with_a_forward_of_its_own_is_quantized_by_its_steps(
    make: Callable[[], nn.Module], points: int
) -> None:
    """It keeps its class, and the output is near."""
    model = nn.Sequential(nn.Linear(4, 4), make()).eval()
    x = values(0, 3, 4)
    expected = model(x)
    converted = _quantized(model, PTQConfig(), x)
    assert isinstance(modules_by_path(converted)["1"], type(make()))
    [line] = [line for line in report(converted).layers if line.path == "1"]
    assert line.activation.count("static") == points
    assert (converted(x) - expected).abs().max() < 0.05 * expected.abs().max()


def test_container_that_computes_is_reported() -> None:
    """The arithmetic between layers stays float, and the report says where there is some."""
    model = nn.Sequential(_Residual(nn.Linear(4, 4)))
    converted = _quantized(model, PTQConfig(steps="declared"), values(0, 3, 4))
    reasons = {line.path: line.reason for line in report(converted).layers}
    assert reasons == {"0": "the arithmetic of its own forward stays float", "0.0": ""}


class _Residual(nn.Sequential):
    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        inner: Tensor = super().forward(input)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return input + inner


def test_strict_mode_names_every_unsupported_module_at_once() -> None:
    """One run is enough to know what is missing."""
    model = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4), nn.Sequential(nn.GRU(4, 4), nn.GRUCell(4, 4)))
    with refused(model, UnsupportedError, module="0") as error:
        prepare(model, PTQConfig())
    assert [problem.module for problem in error.value.problems] == ["0", "2.0", "2.1"]


def test_strict_mode_names_three_ways_out() -> None:
    """A wrapper, an override for one module, or permission for all."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with refused(model, UnsupportedError, module="1") as error:
        prepare(model, PTQConfig())
    for way in ("register a wrapper", "overrides={'1': no_quant()}", "strict_wrap=False"):
        assert way in str(error.value)


@pytest.mark.parametrize("key", ["1", "*1", "re:1"])
def test_unsupported_module_may_be_left_float_by_an_override(key: str) -> None:
    """Then it is no error in strict mode; the report says who wanted it."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    converted = _quantized(model, PTQConfig(overrides={key: no_quant()}), values(0, 3, 4))
    assert {line.path: line.reason for line in report(converted).layers}["1"] == "the config leaves it float"


def test_format_for_an_unsupported_module_is_not_ignored() -> None:
    """A rule that nothing can follow is an error, in permissive mode too."""
    model = nn.Sequential(nn.Linear(4, 4), nn.LSTM(4, 4))
    with refused(model, ConfigError, field="overrides"):
        prepare(model, PTQConfig(strict_wrap=False, overrides={"1": affine(DType.uint(4))}))


def test_permissive_mode_quantizes_below_what_it_cannot_wrap() -> None:
    """An MLP of a formula of its own stays, and its layers are quantized all the same."""
    mlp = _Mlp(tiny_llama().config)  # type: ignore[no-untyped-call]  # transformers' is untyped
    config = PTQConfig(strict_wrap=False, steps="declared")
    converted = _quantized(nn.Sequential(nn.Identity(), mlp), config, values(0, 3, 16))
    lines = {line.path: line for line in report(converted).layers}
    assert "a forward of its own" in lines["1"].reason
    assert [lines[f"1.{name}_proj"].weight for name in ("gate", "up", "down")] == ["uint8 per row"] * 3


def test_encoder_layer_is_left_float_as_a_whole() -> None:
    """The fast path of torch reads its weights past the modules: nothing inside is half quantized."""
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    model = nn.Sequential(nn.Linear(8, 8), layer).eval()
    converted = _quantized(model, PTQConfig(overrides={"1": no_quant()}), values(0, 2, 3, 8))
    x = values(1, 2, 3, 8)
    with torch.no_grad():
        fast = converted(x)
        expected = layer(modules_by_path(converted)["0"](x))
    assert torch.equal(fast, expected)
    assert (fast - converted(x)).abs().max() < 1e-5
    assert all(type(layer.get_submodule(path)) is nn.Linear for path in ("linear1", "linear2"))
