"""Which layers a config reaches: heads, exclusions, layers with a forward of their own, experts."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ClassVar, Protocol

import attrs
import pytest
import torch
from torch import Tensor, nn

from smoothing_models import converted, output_of, relative_difference
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
    report,
)
from tico.quantization.config import affine, no_quant
from tico_config import ConfigError, DType, ModuleConfig, UnsupportedError, from_json, to_json
from tico_modules import LayerReport, QuantizedModule
from tico_quantizers.layers import output_embeddings
from tico_quantizers.testing import refused, seeded
from tiny_models import TOKENS, tiny_llama, values

GPTQ = GPTQConfig(show_progress=False)
AWQ = AWQConfig(group_size=None, show_progress=False)
SMOOTH = SmoothQuantConfig(alpha=0.9)
WEIGHTS: dict[str, ModuleConfig] = {"gptq": GPTQ, "awq": AWQ}
MODULES: dict[str, ModuleConfig] = {**WEIGHTS, "smoothquant": SMOOTH}


def lines(model: nn.Module) -> dict[str, LayerReport]:
    """Return the report by path."""
    return {line.path: line for line in report(model).layers}


class Wrapped(nn.Module):
    """A model inside of another one."""

    def __init__(self, inner: nn.Module) -> None:
        """Hold it."""
        super().__init__()
        self.lm = inner

    def forward(self, x: Tensor) -> object:
        """Return what it gives."""
        output: object = self.lm(x)
        return output


class TwoHeads(nn.Module):
    """A model that is none of transformers', and says which layers are its heads."""

    def __init__(self, kind: Callable[[list[nn.Module]], object]) -> None:
        """Make the layers; `kind` is how the heads are given."""
        super().__init__()
        self.norm, self.body = nn.LayerNorm(8), nn.Linear(8, 8)
        self.one, self.two = nn.Linear(8, 5), nn.Linear(8, 3)
        self.kind = kind

    def get_output_embeddings(self) -> object:
        """Return both heads."""
        return self.kind([self.one, self.two])

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits of both."""
        hidden = torch.relu(self.body(self.norm(x)))
        return torch.cat([self.one(hidden), self.two(hidden)], -1)


def twice(model: nn.Module) -> nn.Module:
    """Return a model inside of a model inside of another one."""
    return Wrapped(Wrapped(model)).eval()


@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_a_head_is_protected_at_any_depth(config: ModuleConfig) -> None:
    """It stays float unless an override has its exact path."""
    model, path = twice(tiny_llama()), "lm.lm.lm_head"
    found = lines(converted(model, config, TOKENS))
    assert found[path].weight == "float"
    assert found["lm.lm.model.layers.0.mlp.up_proj"].weight != "float"
    named = attrs.evolve(config, overrides={path: {"bits": 8}})
    assert lines(converted(model, named, TOKENS))[path].weight != "float"


@pytest.mark.parametrize("kind", [list, tuple, nn.ModuleList, lambda heads: dict(enumerate(heads))])
@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_all_heads_of_any_model_are_protected(
    config: ModuleConfig, kind: Callable[[list[nn.Module]], object]
) -> None:
    """However they are given; what answers with nothing, or not at all, has none."""
    found = lines(converted(seeded(lambda: TwoHeads(kind)), config, values(1, 40, 8)))
    assert {path for path, line in found.items() if "output embedding" in line.reason} == {"one", "two"}
    assert found["body"].weight != "float"


def test_a_model_that_answers_with_nothing_has_no_head() -> None:
    """Many inherit a method that does not apply to them."""

    class Refusing(nn.Linear):
        def get_output_embeddings(self) -> object:
            raise NotImplementedError

    assert output_embeddings(nn.Sequential(Refusing(2, 2), TwoHeads(lambda heads: None))) == ()


class Tower(nn.Module):
    """Two parts, each a norm with layers, one after the other."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.vision, self.text = (
            nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8)) for _ in range(2)
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return hidden states."""
        output: Tensor = self.text(self.vision(x))
        return output


EXCLUSIONS: dict[str, tuple[dict[str, object], set[str]]] = {
    "layer": ({"vision.3": no_quant()}, {"vision.3"}),
    "tower": ({"vision": no_quant()}, {"vision.1", "vision.3"}),
    "glob": ({"vision.*": no_quant()}, {"vision.1", "vision.3"}),
    "all but one": ({"vision": no_quant(), "vision.1": "anything"}, {"vision.3"}),
}


@pytest.mark.parametrize("case", EXCLUSIONS)
@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_no_quant_leaves_layers_out(config: ModuleConfig, case: str) -> None:
    """A layer, all of a tower, what a pattern matches; the report says by which override."""
    overrides, out = EXCLUSIONS[case]
    given = {path: {"bits": 8} if change == "anything" else change for path, change in overrides.items()}
    config = attrs.evolve(config, overrides=given)
    assert from_json(to_json(config)) == config
    model = converted(seeded(Tower), config, values(1, 40, 8))
    found = lines(model)
    floats = {path for path, module in model.named_modules() if type(module) is nn.Linear}
    assert floats == out
    for path in out:
        assert "left out by the override" in found[path].reason
        assert found[path].weight == "float"


@pytest.mark.parametrize("case", ["layer", "tower", "glob"])
def test_no_quant_leaves_pairs_alone(case: str) -> None:
    """SmoothQuant scales no pair with a module that is left out."""
    overrides, out = EXCLUSIONS[case]
    model = seeded(Tower)
    found = converted(model, attrs.evolve(SMOOTH, overrides=overrides), values(1, 40, 8))
    for path in out:
        assert found.get_parameter(f"{path}.weight").equal(model.get_parameter(f"{path}.weight"))
        assert "left out by the override" in lines(found)[path].reason
    assert not found.get_parameter("text.1.weight").equal(model.get_parameter("text.1.weight"))


@pytest.mark.parametrize("config", MODULES.values(), ids=MODULES)
def test_what_no_quant_can_not_leave_out_is_refused(config: ModuleConfig) -> None:
    """A path that is none, and a module without a layer; another spec is none for a module."""
    for path, found in (("vission", "'vision'"), ("vision.2", "'vision.2' is a ReLU")):
        model = seeded(Tower)
        with refused(model, ConfigError, field="overrides") as caught:
            prepare(model, attrs.evolve(config, overrides={path: no_quant()}))
        assert found in str(caught.value)
    with pytest.raises(ConfigError, match="no_quant"):
        attrs.evolve(config, overrides={"vision": affine(DType.uint(4))})


def test_everything_left_out_is_refused() -> None:
    """With the reasons."""
    for config in WEIGHTS.values():
        model = seeded(Tower)
        with refused(model, ConfigError, field="model") as caught:
            prepare(model, attrs.evolve(config, overrides={"*": no_quant()}))
        assert "vision.1: left out by the override '*'" in str(caught.value)


@pytest.mark.parametrize("path", ["text.3", "text", "text*"])
def test_no_quant_is_one_word_for_all_configs(path: str) -> None:
    """PTQ and PT2E know it, too, for layers, what holds them and patterns; nothing else stays float."""
    x = values(1, 40, 8)
    ptq = converted(seeded(Tower), PTQConfig(overrides={path: no_quant()}), x)
    prepared = prepare(
        seeded(Tower), PT2EConfig(overrides={path: no_quant()}), args=(x,), kwargs=None, inplace=False
    )
    prepared(x)
    found = [lines(ptq), lines(convert(prepared))]
    for each in found:
        assert each["text.3"].weight == "float"
        assert each["text.3"].reason
        assert (each["text.1"].weight == "float") == (path != "text.3")
        assert each["vision.3"].weight != "float"
    assert found[1]["text.3"].reason == f"left out by the override {path!r}"


class Plain(nn.Linear):
    """Computes what a linear layer does, as Falcon's of transformers has it."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the product, and add the bias after it."""
        hidden = input @ self.weight.T
        bias: Tensor | None = self.bias
        return hidden if bias is None else hidden + bias


class PlainConv(nn.Conv2d):
    """Computes what a convolution does."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the convolution."""
        return nn.functional.conv2d(input, self.weight, self.bias, self.stride, self.padding, self.dilation)


class Standardized(nn.Conv2d):
    """Computes with another weight than it holds."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the convolution with the weight's mean taken off."""
        return nn.functional.conv2d(input, self.weight - self.weight.mean(), self.bias)


class Clipped(nn.Linear):
    """Computes what a linear layer does, for small inputs only."""

    limit: ClassVar[float] = 1e5

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name
        """Return the product with inputs cut off."""
        return super().forward(input.clamp(-self.limit, self.limit))


class Strange(nn.Linear):
    """Wants more than one input."""

    def forward(self, input: Tensor, factor: Tensor) -> Tensor:  # type: ignore[override]  # noqa: A002  # as some do
        """Return the product, multiplied."""
        return super().forward(input) * factor


class Forward(Protocol):
    """A forward of any layer."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Return what the layer gives."""


def hooked(layer: nn.Module, *, removed: bool) -> nn.Module:
    """Return a layer with a forward of its own, as accelerate's hooks leave it."""
    old: Forward = layer.forward
    attributes = vars(layer)

    def new_forward(module: nn.Module, *args: object, **kwargs: object) -> object:
        forward: Forward = vars(module)["_old_forward"]
        return forward(*args, **kwargs)

    attributes["_old_forward"] = old
    attributes["forward"] = functools.update_wrapper(functools.partial(new_forward, layer), old)
    if removed:
        attributes["forward"] = attributes.pop("_old_forward")
    return layer


ALIKE: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "subclass": (lambda: Plain(8, 4), (6, 8)),
    "without a bias": (lambda: Plain(8, 4, bias=False), (6, 8)),
    "in bfloat16": (lambda: Plain(8, 4).bfloat16(), (6, 8)),
    "convolution": (lambda: PlainConv(2, 3, 3, padding=1), (2, 2, 5, 5)),
    "hooked": (lambda: hooked(nn.Linear(8, 4), removed=False), (6, 8)),
    "hook removed": (lambda: hooked(nn.Linear(8, 4), removed=True), (6, 8)),
    "hooked convolution": (lambda: hooked(nn.Conv2d(2, 3, 3), removed=False), (2, 2, 5, 5)),
}


@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
@pytest.mark.parametrize("case", ALIKE)
def test_a_forward_that_computes_the_same_is_no_reason(case: str, config: ModuleConfig) -> None:
    """The layer is quantized to what a plain one of the same weight is."""
    make, size = ALIKE[case]
    layer = seeded(make)
    dtype, bias = layer.get_parameter("weight").dtype, "bias" in layer.state_dict()
    plain: nn.Module = nn.Linear(8, 4, bias=bias)
    before: nn.Module = nn.LayerNorm(8)
    if len(size) > 2:
        plain, before = nn.Conv2d(2, 3, 3, padding=getattr(layer, "padding", 0)), nn.BatchNorm2d(2)
    plain.to(dtype).load_state_dict(layer.state_dict())
    before, x = before.to(dtype), values(1, *size).to(dtype)
    found = converted(nn.Sequential(before, layer).eval(), config, x)
    wanted = converted(nn.Sequential(before, plain).eval(), config, x)
    assert isinstance(found.get_submodule("1"), QuantizedModule)
    assert torch.equal(output_of(found, x), output_of(wanted, x))


@pytest.mark.parametrize("make", [lambda: Standardized(2, 3, 3), lambda: Strange(8, 4)])
def test_a_forward_that_computes_something_else_is_a_reason(make: Callable[[], nn.Module]) -> None:
    """So is one that wants other inputs; the report says so."""
    layer = seeded(make)
    model = nn.Sequential(nn.Linear(8, 8), nn.ModuleList([layer])).eval()
    prepared = prepare(model, GPTQ)
    with torch.no_grad():
        prepared.get_submodule("0")(values(1, 40, 8))
    reason = lines(convert(prepared))["1.0"].reason
    assert reason.startswith(f"this {type(layer).__name__} has a forward of its own")


@pytest.mark.parametrize("config", MODULES.values(), ids=MODULES)
def test_a_forward_is_held_to_the_data(config: ModuleConfig) -> None:
    """Where data show that it computes something else, the pass is refused, with the way out."""
    model = nn.Sequential(nn.LayerNorm(8), Clipped(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    with torch.no_grad():
        model.get_parameter("0.weight").fill_(1e6)
    prepared = prepare(model, config, inplace=False)
    with pytest.raises(UnsupportedError, match="no_quant") as caught:
        prepared(values(1, 40, 8))
    assert (caught.value.module, caught.value.field) == ("1", "forward")


@pytest.mark.parametrize("config", WEIGHTS.values(), ids=WEIGHTS)
def test_a_forward_that_is_left_out_may_compute_anything(config: ModuleConfig) -> None:
    """Its input is not scaled either, though others read it."""

    class Sides(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), Clipped(8, 8), nn.Linear(8, 8)
            self.last, self.end = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden: Tensor = self.norm(x)
            output: Tensor = self.end(self.last(self.one(hidden) + self.two(hidden)))
            return output

    model, x = seeded(Sides), values(1, 40, 8)
    with torch.no_grad():
        model.norm.weight.fill_(1e6)
    found = converted(model, attrs.evolve(config, overrides={"one": no_quant()}), x)
    assert type(found.get_submodule("one")) is Clipped
    assert found.get_parameter("norm.weight").equal(model.norm.weight)
    assert lines(found)["one"].reason.startswith("left out by the override 'one'")


def test_a_layer_after_accelerate_is_smoothed() -> None:
    """Its pair is found, and the function stays."""
    model = nn.Sequential(nn.LayerNorm(8), hooked(nn.Linear(8, 8), removed=True)).eval()
    x = values(1, 6, 8)
    smooth = converted(model, SMOOTH, x)
    assert not smooth.get_parameter("1.weight").equal(model.get_parameter("1.weight"))
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


class Pyramid(nn.Module):
    """Convolutions of one shape, each on an image half as large as the one before."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.levels = nn.ModuleList(nn.Conv2d(2, 2, 3, padding=1) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the smallest image."""
        for level in self.levels:
            x = nn.functional.max_pool2d(level(x), 2)
        return x


@pytest.mark.parametrize("make", [Pyramid, lambda: Wrapped(Pyramid())])
def test_a_convolution_on_a_small_image_is_no_expert(make: Callable[[], nn.Module]) -> None:
    """It is solved for what it has read, however few positions that are, and nothing calls it an expert."""
    found = lines(converted(seeded(make), GPTQ, values(1, 1, 2, 16, 16)))
    for line in found.values():
        assert "rounded to nearest" not in line.reason
        assert "loss" in dict(line.figures)


def test_fewer_tokens_than_columns_are_noted() -> None:
    """Such a layer's errors are known in some directions only, which the report says."""
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 8)).eval()
    found = lines(converted(model, GPTQ, values(1, 10, 8)))
    assert found["0"].reason == ""
    assert found["2"].reason.startswith("it read 10 tokens, fewer than its 12 columns")


WIDTHS = {"gptq": GPTQConfig(group_size=16, show_progress=False), "awq": attrs.evolve(AWQ, group_size=16)}


@pytest.mark.parametrize("config", WIDTHS.values(), ids=WIDTHS)
def test_groups_that_do_not_divide_are_named_all_at_once(config: GPTQConfig | AWQConfig) -> None:
    """With the largest size that does; `ragged_groups` takes them, wider than a row or not."""
    model = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 12), nn.ReLU(), nn.Linear(12, 32)).eval()
    with refused(model, ConfigError, field="group_size", module="1") as caught:
        prepare(model, config)
    assert "does not divide its 24 input columns; choose 12 " in str(caught.value)
    assert "does not divide its 12 input columns; choose 12 " in str(caught.value)
    x = values(1, 40, 24)
    found = converted(model, attrs.evolve(config, ragged_groups=True), x)
    whole = converted(model, attrs.evolve(config, group_size=None), x)
    shapes = [tuple(found.get_buffer(f"{path}.packed.scale").shape) for path in ("1", "3")]
    assert shapes == [(12, 2), (32, 1)]
    one = attrs.evolve(config, ragged_groups=True, group_size=100)
    assert torch.equal(output_of(converted(model, one, x), x), output_of(whole, x))
