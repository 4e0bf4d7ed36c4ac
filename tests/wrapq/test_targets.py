"""`target` of PTQ: what a runtime does not take is refused. `scope`: linear layers alone."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor, nn

from export_models import SUBJECTS
from tico.quantization import GPTQConfig, PTQConfig, convert, coverage, prepare, report
from tico.quantization.config import (
    ConfigError,
    DType,
    PerGroup,
    PerToken,
    affine,
    no_quant,
    profiles,
)
from tico_quantizers.testing import unchanged

TOKENS = affine(DType.int(8), granularity=PerToken())
W8A8 = profiles.VLLM.config(PTQConfig, activation=TOKENS)
FLOAT = ("embed_tokens", "norm", "lm_head")


def made(subject: str) -> nn.Module:
    """Return a small float model."""
    return SUBJECTS[subject].make().eval()


def refused(subject: str, config: PTQConfig) -> ConfigError:
    """Return the error with which `prepare` refuses a config; the model stays as it was."""
    model = made(subject)
    with unchanged(model), pytest.raises(ConfigError) as caught:
        prepare(model, config)
    return caught.value


def quantized(subject: str, config: PTQConfig) -> nn.Module:
    """Return a model quantized by a config."""
    given = SUBJECTS[subject]
    model = prepare(made(subject), config)
    model(*given.args, **given.kwargs)
    return convert(model)


def test_linear_scope_is_linear_layers_and_what_they_read() -> None:
    """Embeddings, norms, attention, activation functions and the head stay float, and the report says why."""
    lines = {line.path: line for line in report(quantized("LLaMA", W8A8)).layers}
    done = {path for path, line in lines.items() if line.weight != "float"}
    assert {path.rpartition(".")[2] for path in done} == {
        *("q_proj", "k_proj", "v_proj", "o_proj"),
        *("gate_proj", "up_proj", "down_proj"),
    }
    assert {lines[path].activation for path in done} == {"act_in int8 per token"}
    assert "exact path" in lines["lm_head"].reason
    assert lines["model.embed_tokens"].reason == "scope='linear' is for linear layers"
    assert {line.activation for path, line in lines.items() if path not in done} == {"float"}


def test_linear_scope_takes_points_and_heads_that_are_named() -> None:
    """An override with the point of what a layer gives, or with the exact path of the head, holds."""
    named = {"lm_head": {"dtype": DType.int(8)}, "*.o_proj.act_out": affine(DType.int(8))}
    config = PTQConfig(activation=TOKENS, weight=affine(DType.int(8)), scope="linear", overrides=named)
    lines = {line.path: line for line in report(quantized("LLaMA", config)).layers}
    assert lines["lm_head"].weight == "int8 per row"
    assert "act_out int8 static" in lines["model.layers.1.self_attn.o_proj"].activation
    assert "act_out" not in lines["model.layers.1.self_attn.q_proj"].activation


def test_linear_scope_refuses_overrides_for_anything_else() -> None:
    """A norm is no linear layer."""
    config = PTQConfig(scope="linear", overrides={"*.input_layernorm": affine(DType.int(16))})
    assert "matches no module" in str(refused("LLaMA", config))


def test_linear_scope_leaves_attention_whole() -> None:
    """Modules that read weights of linear layers without calling them are taken as they are."""
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(32, 2), "out": nn.Linear(32, 32)}).eval()
    prepare(model, PTQConfig(scope="linear"))
    assert type(model["attention"]) is nn.MultiheadAttention
    assert type(model["out"]) is not nn.Linear


@pytest.mark.parametrize("subject", ["linear stack", "LLaMA", "Qwen3"])
@pytest.mark.parametrize("profile", profiles.BUILT_IN.values(), ids=str)
def test_what_a_profile_gives_is_legal_for_any_model(subject: str, profile: object) -> None:
    """The best config for PTQ is not refused, but where a runtime takes blocks, and the model has none."""
    target = next(each for each in profiles.BUILT_IN.values() if each == profile)
    config = target.config(PTQConfig)
    if target.in_blocks and subject == "linear stack":
        assert "the same layers in every block of one list" in str(refused(subject, config))
    else:
        prepare(made(subject), config)


def test_everything_that_has_no_place_is_told_at_once() -> None:
    """Kinds of layers, formats and activations, each with what is legal and the way out."""
    error = refused("LLaMA", PTQConfig(target=profiles.VLLM))
    text = str(error)
    assert "layers of kind linear, and the layer is embedding" in text
    assert "vLLM takes weights of int4, uint4, int8 or fp8_e4m3, and the weight is uint8" in text
    assert "vLLM has no place for the grid of this activation" in text
    assert "target.configs(PTQConfig)" in text
    assert len(error.problems) > 50


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        ({"activation": affine(DType.uint(8))}, "dtype", "XNNPACK takes activations of int8"),
        ({"activation": TOKENS}, "granularity", "one fixed grid, and the activation has a grid a token"),
        ({"activation": no_quant()}, "act_in", "inputs of int8, and the layer has float inputs"),
        ({"weight": affine(DType.uint(8))}, "dtype", "XNNPACK takes weights of int8"),
        ({"weight": affine(DType.int(8), granularity=PerGroup(size=32))}, "granularity", "a scale a row"),
    ],
)
def test_a_misfit_names_the_field_of_the_spec(change: dict[str, object], field: str, words: str) -> None:
    """Each of the three layers is listed."""
    config = attrs.evolve(profiles.XNNPACK.config(PTQConfig), **change)  # type: ignore[arg-type]  # its fields
    error = refused("linear stack", config)
    assert {str(each.module)[0] for each in error.problems if each.field == field} >= {"0", "2", "4"}
    assert words in str(error)


def test_an_override_can_make_it_legal_or_not() -> None:
    """What holds at a point counts, wherever it comes from."""
    wrong = {"2.act_in": affine(DType.uint(8))}
    error = refused("linear stack", attrs.evolve(profiles.XNNPACK.config(PTQConfig), overrides=wrong))
    assert [each.module for each in error.problems] == ["2.act_in"]
    right = {f"{at}": no_quant() for at in (0, 2)} | {"1": no_quant(), "3": no_quant(), "4": {}}
    right.pop("4")
    mixed = PTQConfig(activation=TOKENS, weight=affine(DType.int(8)), target=profiles.VLLM, overrides=right)
    assert [each.module for each in refused("linear stack", mixed).problems] == ["4.act_out"]


def test_layers_computed_as_one_need_one_format() -> None:
    """Also where they differ in what they read."""
    static = {"*.layers.0.self_attn.q_proj.act_in": affine(DType.int(8))}
    error = refused("LLaMA", attrs.evolve(W8A8, overrides=static))
    assert [each.module for each in error.problems] == ["model.layers.0.self_attn"]
    assert "q_proj, k_proj and v_proj as one layer" in str(error)


def test_codes_of_an_earlier_run_are_looked_at() -> None:
    """GPTQ's weights with PTQ's inputs have to be one format of the runtime."""
    given = SUBJECTS["linear stack"]
    for config, words in (
        (GPTQConfig(bits=8, symmetric=True, show_progress=False), ""),
        (GPTQConfig(bits=4, show_progress=False), "float inputs"),
    ):
        model = prepare(made("linear stack"), config)
        model(*given.args)
        model = convert(model)
        if words:
            with pytest.raises(ConfigError, match=words):
                prepare(model, W8A8)
        else:
            prepare(model, W8A8)


class Doubled(nn.Module):
    """A step of its own between two layers."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.first, self.last = nn.Linear(32, 32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result."""
        hidden = torch.sigmoid(self.first(x)) * 2
        y: Tensor = self.last(hidden)
        return y


def test_steps_that_are_found_later_are_looked_at_before() -> None:
    """The spec that all steps have, and overrides that may name one, are judged in `prepare`."""
    good = profiles.XNNPACK.config(PTQConfig)
    prepare(nn.Sequential(Doubled()).eval(), good)
    bad = attrs.evolve(good, overrides={"0.mul_0": affine(DType.int(16))})
    with pytest.raises(ConfigError, match="activations of int8, and the activation is int16") as caught:
        prepare(nn.Sequential(Doubled()).eval(), bad)
    assert caught.value.module == "0.mul_0"
    servers = PTQConfig(activation=TOKENS, weight=affine(DType.int(8)), target=profiles.VLLM)
    with pytest.raises(ConfigError) as caught:
        prepare(nn.Sequential(Doubled()).eval(), servers)
    assert "0.*" in [each.module for each in caught.value.problems]
    prepare(nn.Sequential(Doubled()).eval(), attrs.evolve(servers, scope="linear"))


def test_grids_that_an_earlier_run_has_left_are_looked_at() -> None:
    """A point that stays on its grid has no place in vLLM, though this config asks for none there."""
    model = quantized("LLaMA", PTQConfig(activation=TOKENS, weight=affine(DType.int(8))))
    with pytest.raises(ConfigError, match="no place for the grid") as caught:
        prepare(model, W8A8)
    assert any("self_attn" in str(each.module) for each in caught.value.problems)


def test_coverage_of_the_linear_scope_lists_every_module() -> None:
    """What is out of scope has a line with the reason before calibration too."""
    lines = coverage(prepare(made("LLaMA"), W8A8)).lines
    assert {line.path.rpartition(".")[2] for line in lines if "scope" in line.reason} >= set(FLOAT)
