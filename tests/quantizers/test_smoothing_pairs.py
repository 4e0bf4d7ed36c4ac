"""Pairs for smoothing: which are found, which are not and why, and what mappings say."""

from __future__ import annotations

import math
from collections.abc import Mapping

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaForCausalLM

from smoothing_models import Encoder, converted, model_with_data, output_of, relative_difference
from tico.quantization import AWQConfig, GPTQConfig, SmoothQuantConfig, convert, prepare, report
from tico_config import CalibrationError, ConfigError, NumericsError, SmoothingConfig
from tico_quantizers.equivalence import Candidates, FoundPairs, _channel_flow, find_pairs
from tico_quantizers.equivalence._channel_scale import as_channel_scale
from tico_quantizers.equivalence._function_check import exact_scale
from tico_quantizers.testing import refused, same_tensors, seeded, tensors_of, unchanged
from tiny_models import TOKENS, net, tiny_llama, values


def pairs_of(model: nn.Module, x: Tensor) -> FoundPairs:
    """Return the pairs that show when `model` runs on `x`."""
    with torch.no_grad():
        return find_pairs(model, Candidates.of(model), lambda: model(x))


def names(found: FoundPairs) -> dict[str, list[str]]:
    """Return the readers of each source."""
    return {pair.path: [consumer.path for consumer in pair.consumers] for pair in found.pairs}


def test_pairs_of_a_llama() -> None:
    """Both norms, the values, the upper half of the MLP, and the last norm."""
    found = names(pairs_of(tiny_llama(), TOKENS))
    layer = "model.layers.1"
    assert found[f"{layer}.input_layernorm"] == [f"{layer}.self_attn.{name}_proj" for name in "qkv"]
    assert found[f"{layer}.post_attention_layernorm"] == [f"{layer}.mlp.gate_proj", f"{layer}.mlp.up_proj"]
    assert found[f"{layer}.mlp.up_proj"] == [f"{layer}.mlp.down_proj"]
    assert found[f"{layer}.self_attn.v_proj"] == [f"{layer}.self_attn.o_proj"]
    assert found["model.norm"] == ["lm_head"]
    assert len(found) == 9


def test_query_heads_that_share_a_value_share_its_scales() -> None:
    """The columns of the output projection know which channel of the values each of them reads."""
    found = pairs_of(tiny_llama(), TOKENS)
    pair = next(pair for pair in found.pairs if pair.path.endswith("v_proj"))
    assert pair.channels == 8
    assert pair.consumers[0].channels.tolist() == [*range(8), *range(8)]


def test_what_is_in_no_pair_has_a_reason() -> None:
    """The layers of a LLaMA that only others than linear layers read."""
    left = pairs_of(tiny_llama(), TOKENS).left
    assert left["model.layers.0.mlp.gate_proj"] == "its output is read by silu"
    assert left["model.layers.0.mlp.down_proj"] == "its output is read by add"
    assert left["model.layers.0.self_attn.q_proj"] == "its output is read by add"
    assert left["lm_head"] == "its output is an output of the model"


def test_a_tied_head_is_not_scaled() -> None:
    """Its weight is the embedding's, too."""
    found = pairs_of(tiny_llama(tied=True), TOKENS)
    assert found.left["lm_head"].startswith("its weight is tied to")
    assert found.left["model.norm"] == "its output is read by lm_head"


def test_convolutions_and_what_lies_between() -> None:
    """Scales pass through ReLU, pooling and flattening, through no other activation."""
    model, x = model_with_data("convolutions")
    found = pairs_of(model, x)
    assert names(found) == {"1": ["3"], "3": ["6"], "6": ["9"]}
    assert found.left["0"] == "its output is read by 1"


def test_flattened_channels_are_read_many_times() -> None:
    """A linear layer that reads a flattened image has a column for each pixel of a channel."""
    found = pairs_of(net(), values(1, 2, 2, 4, 4))
    reader = next(pair.consumers[0] for pair in found.pairs if pair.path == "norm")
    assert reader.channels.tolist() == [0] * 16 + [1] * 16 + [2] * 16


def test_transposed_linear_layers_are_readers() -> None:
    """GPT-2 keeps its weights the other way round; what its attention splits is in no pair."""
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, n_positions=32))
    nn.Module.eval(model)
    found = pairs_of(model, TOKENS)
    assert names(found)["transformer.h.0.ln_1"] == ["transformer.h.0.attn.c_attn"]
    smooth = converted(model, SmoothQuantConfig(), TOKENS)
    assert relative_difference(output_of(model, TOKENS), output_of(smooth, TOKENS)) < 1e-5


class Gated(nn.Module):
    """A norm that a linear layer reads, and something else."""

    def __init__(self, other: str) -> None:
        """Make the layers; `other` says what else reads the norm, or takes part."""
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.gate = nn.Parameter(torch.ones(3, 8))
        self.other = other

    def forward(self, x: Tensor) -> Tensor:
        """Return something of the shape of `x`."""
        hidden: Tensor = self.norm(x)
        output: Tensor = self.one(hidden)
        match self.other:
            case "gate":
                output = output * (hidden @ self.gate.T).softmax(-1)[..., :1]
            case "residual":
                output = output + hidden
            case "square":
                output = self.one(hidden * hidden)
            case "item":
                output = output * float(hidden.sum() > 0)
            case "weight":
                output = output * self.norm.weight.mean()
            case "other reader":
                output = self.one(x) + output
            case _:
                return hidden
        return output


class Kept(nn.Module):
    """A norm that a linear layer reads, and is added to what that gives."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm, self.one = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return something of the shape of `x`."""
        hidden: Tensor = self.norm(x)
        output: Tensor = self.one(hidden)
        return output + hidden


class Shuffled(nn.Module):
    """A norm whose channels a linear layer reads in another order."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm, self.one = nn.LayerNorm(8), nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        """Return something of the shape of `x`."""
        output: Tensor = self.one(self.norm(x).flip(-1))
        return output


REASONS = {
    "gate": "its output is read by matmul",
    "residual": "its output is read by add",
    "square": "its output is read by mul",
    "item": "its output is read by sum",
    "weight": "its weight is read by mean as well",
    "other reader": "its consumer one reads something else as well",
    "returned": "its output is an output of the model",
}


@pytest.mark.parametrize("other", REASONS)
def test_another_reader_breaks_the_pair(other: str) -> None:
    """Whatever reads a norm and cannot undo its scales leaves it alone, with the reason."""
    found = pairs_of(Gated(other).eval(), values(1, 4, 8))
    assert found.left["norm"] == REASONS[other]
    assert "norm" not in names(found)


def test_a_residual_that_reads_the_input_of_a_norm_is_no_reader_of_it() -> None:
    """The stream itself is not scaled."""
    model, x = model_with_data("encoder")
    assert names(pairs_of(model, x)) == {
        "norm1": ["query", "key", "value"],
        "value": ["out"],
        "norm2": ["linear1"],
    }


def test_a_routed_mixture_is_rescaled_with_its_gate() -> None:
    """A gate that is a linear layer undoes the scales like any reader."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.gate, self.expert = nn.LayerNorm(8), nn.Linear(8, 2), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.norm(x)
            output: Tensor = self.expert(hidden) * self.gate(hidden).softmax(-1)[..., :1]
            return output

    model, x = Mixture().eval(), values(1, 4, 8)
    assert names(pairs_of(model, x)) == {"norm": ["gate", "expert"]}
    smooth = converted(model, SmoothQuantConfig(alpha=0.9), x)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


class Branches(nn.Module):
    """A norm that one layer reads, or another, or a residual too: what the sum of the input decides."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Return something of the shape of `x`."""
        hidden: Tensor = self.norm(x)
        output: Tensor = self.one(hidden) if float(x.sum()) > 0 else self.two(hidden)
        return output + hidden if float(x.sum()) > 100 else output


PASSES = {"one": values(1, 2, 8).abs(), "two": -values(1, 2, 8).abs(), "residual": values(1, 2, 8).abs() + 99}
SMOOTHING: dict[str, SmoothingConfig] = {
    "smoothquant": SmoothQuantConfig(alpha=0.9),
    "awq": AWQConfig(group_size=None, round_weights=False, show_progress=False),
}


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")], ids=lambda order: order[0])
@pytest.mark.parametrize("config", SMOOTHING.values(), ids=SMOOTHING)
def test_pairs_grow_with_the_passes_that_show_them(config: SmoothingConfig, order: tuple[str, ...]) -> None:
    """A layer that only a later pass reaches undoes the scales, too, whatever the order."""
    model = seeded(Branches)
    smooth = converted(model, config, *(PASSES[name] for name in order))
    lines = {line.path: line.reason for line in report(smooth).layers}
    assert lines["norm"] == "channels divided for one, two"
    for name in order:
        x = PASSES[name]
        assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


@pytest.mark.parametrize(
    "order", [("one", "two", "residual"), ("residual", "two", "one")], ids=lambda order: order[0]
)
@pytest.mark.parametrize("config", SMOOTHING.values(), ids=SMOOTHING)
def test_a_reader_of_any_pass_breaks_the_pair(config: SmoothingConfig, order: tuple[str, ...]) -> None:
    """A residual that is taken for some inputs only is seen in the pass that takes it, be it the last."""
    with pytest.raises(ConfigError) as caught:
        converted(seeded(Branches), config, *(PASSES[name] for name in order))
    assert "norm: its output is read by add" in str(caught.value)


def test_a_pass_that_fails_breaks_no_pair() -> None:
    """What it has shown is forgotten with it."""
    model = seeded(Branches)
    prepared = prepare(model, SmoothQuantConfig(), inplace=False)
    for name in ("one", "two"):
        prepared(PASSES[name])
    with pytest.raises(NumericsError):
        prepared(torch.full((2, 8), torch.inf))
    wanted = converted(model, SmoothQuantConfig(), PASSES["one"], PASSES["two"])
    assert same_tensors(tensors_of(convert(prepared)), tensors_of(wanted))


def test_a_pair_that_a_layer_without_data_may_belong_to_is_left_alone() -> None:
    """What an unseen branch reads is not known, so nothing is changed."""
    prepared = prepare(seeded(Branches), SmoothQuantConfig())
    prepared(PASSES["one"])
    with refused(prepared, ConfigError, field="model") as caught:
        convert(prepared)
    assert "norm: two, which no data reached, may read it as well" in str(caught.value)


def test_experts_without_data_are_scaled_like_their_peers() -> None:
    """A token that is routed to an expert which no calibration data reached meets the same function."""

    class Mixture(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.LayerNorm(8)
            self.experts = nn.ModuleList(nn.Linear(8, 8) for _ in range(3))

        def forward(self, x: Tensor, number: int) -> Tensor:
            output: Tensor = self.experts[number](self.norm(x))
            return output

    model, x = seeded(Mixture), values(1, 4, 8) * 10
    nn.init.normal_(model.norm.weight)
    prepared = prepare(model, SmoothQuantConfig(alpha=0.9), inplace=False)
    prepared(x, 0)
    prepared(x, 2)
    smooth = convert(prepared)
    for number in range(3):
        assert torch.allclose(smooth(x, number), model(x, number), atol=1e-5)
    assert not smooth.get_parameter("norm.weight").equal(model.get_parameter("norm.weight"))
    lines = {line.path: line.reason for line in report(smooth).layers}
    assert lines["experts.1"] == "columns multiplied for norm; no data reached it, only its peers"


def test_generating_shows_the_same_pairs_as_a_pass() -> None:
    """Values that a cache holds from pass to pass are followed: their pairs stay."""
    model = tiny_llama()
    prepared = prepare(model, SmoothQuantConfig(), inplace=False)
    assert isinstance(prepared, LlamaForCausalLM)
    mask = torch.ones_like(TOKENS)
    prepared.generate(TOKENS, max_new_tokens=4, do_sample=False, attention_mask=mask)  # type: ignore[misc]
    once = converted(model, SmoothQuantConfig(), TOKENS)
    lines = [{line.path: line.reason for line in report(each).layers} for each in (convert(prepared), once)]
    assert lines[0] == lines[1]


def test_a_part_that_was_called_by_itself_only_is_an_error() -> None:
    """Its calls do not show what else reads its input."""
    prepared = prepare(nn.Sequential(nn.LayerNorm(8), nn.Linear(8, 8)).eval(), SmoothQuantConfig())
    prepared.get_submodule("1")(values(1, 2, 8))
    with refused(prepared, CalibrationError, field="data", module="1"):
        convert(prepared)


WRONG = {
    "a norm that something else reads": (Kept, {"norm": ["one"]}, "by add"),
    "a norm that another layer reads": (Encoder, {"norm1": ["query", "key"]}, "query, key, value"),
    "a GELU in between": (
        lambda: nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)),
        {"0": ["2"]},
        "by gelu",
    ),
    "another order of channels": (Shuffled, {"norm": ["one"]}, "one to one"),
}


@pytest.mark.parametrize("given", [True, False], ids=["example", "data"])
@pytest.mark.parametrize("config", SMOOTHING.values(), ids=SMOOTHING)
@pytest.mark.parametrize("case", WRONG)
def test_mappings_are_tried_on_the_data(case: str, config: SmoothingConfig, given: bool) -> None:
    """A pair that changes what the model gives is refused with what reads it, by the example or the data."""
    make, mappings, reader = WRONG[case]
    model, x = seeded(make), values(1, 3, 8, 8) * torch.logspace(-2, 2, 8)
    config = attrs.evolve(config, mappings=mappings)
    with pytest.raises(ConfigError) as caught:
        prepare(model, config, args=(x,)) if given else converted(model, config, x)
    assert (caught.value.field, caught.value.module) == ("mappings", next(iter(mappings)))
    assert reader in str(caught.value)


def test_a_pair_that_was_found_is_tried_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Were a rule about what passes scales on wrong, no scale would stay."""
    rules = {**_channel_flow.ChannelFlow.rules, "gelu": _channel_flow.same_order}
    monkeypatch.setattr(_channel_flow.ChannelFlow, "rules", rules)
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval(), values(1, 6, 8)
    prepared = prepare(model, SmoothQuantConfig(alpha=0.9))
    output_of(prepared, x)
    with refused(prepared, ConfigError, field="model", module="0") as caught:
        convert(prepared)
    assert "undoing it in 2 changes the output of the model by" in str(caught.value)


@pytest.mark.parametrize("scale", [0.7, 0.99, 1.0, 1.2, 3.0])
def test_scales_are_tried_as_powers_of_two(scale: float) -> None:
    """Which are 1 for 1 alone, and at most twice as far from it."""
    power = float(exact_scale(torch.tensor([scale])))
    assert math.log2(power).is_integer()
    assert (power == 1) == (scale == 1)
    assert scale / 2 < power < 2 * scale
    assert (power > 1) == (scale > 1)


def test_a_mapping_that_only_numbers_can_tell_is_taken() -> None:
    """A function that no rule follows may still pass scales on, which the data show."""

    class Sorted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one = nn.LayerNorm(8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = torch.einsum("...c->...c", self.norm(x))
            output: Tensor = self.one(hidden)
            return output

    model, x = seeded(Sorted), values(1, 3, 8)
    assert pairs_of(model, x).left["norm"] == "its output is read by einsum"
    smooth = converted(model, SmoothQuantConfig(mappings={"norm": ["one"]}, alpha=0.9), x)
    assert not smooth.get_parameter("one.weight").equal(model.get_parameter("one.weight"))
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


def test_a_mapping_is_tried_on_the_pass_that_speaks_against_it() -> None:
    """A residual that only the last of three passes takes is noticed."""
    prepared = prepare(seeded(Branches), SmoothQuantConfig(mappings={"norm": ["one", "two"]}, alpha=0.9))
    with torch.no_grad():
        for name in ("one", "two", "residual"):
            prepared(PASSES[name])
    with refused(prepared, ConfigError, field="mappings", module="norm") as caught:
        convert(prepared)
    assert "its output is read by add" in str(caught.value)


def test_integer_layers_are_left_alone() -> None:
    """What is quantized already is not scaled, and a norm that it reads is in no pair."""
    model, x = model_with_data("encoder")
    rounded = converted(model, GPTQConfig(overrides={"linear1": {"bits": 8}}, show_progress=False), x)
    with refused(rounded, ConfigError, field="model") as error:
        prepare(rounded, SmoothQuantConfig(), args=(x,))
    assert "its weight is quantized already" in str(error.value)


@pytest.mark.parametrize(
    ("module", "offset", "axis"),
    [(nn.LayerNorm(6), 0, -1), (nn.RMSNorm(6), 0, -1), (nn.BatchNorm2d(6), 0, 1), (nn.GroupNorm(2, 6), 0, 1)],
    ids=lambda value: type(value).__name__,
)
def test_norms_are_known_by_what_they_do(module: nn.Module, offset: float, axis: int) -> None:
    """Their weight multiplies each channel."""
    found = as_channel_scale(module.eval())
    assert found is not None
    assert (found.offset, found.axis, found.channels) == (offset, axis, 6)


def test_the_offset_of_a_norm_is_found() -> None:
    """Gemma's norm multiplies by 1 + weight."""
    model, _ = model_with_data("gemma")
    found = as_channel_scale(model.get_submodule("model.norm"))
    assert found is not None
    assert found.offset == 1.0


@pytest.mark.parametrize(
    "module", [nn.PReLU(6), nn.LayerNorm((2, 6)), nn.LayerNorm(6, elementwise_affine=False)]
)
def test_other_modules_are_no_norms(module: nn.Module) -> None:
    """A weight that does something else, or of another shape, or none."""
    assert as_channel_scale(module) is None


MAPPINGS = {"norm1": ["query", "key", "value"], "norm2": ["linear1"]}


def test_mappings_say_the_pairs() -> None:
    """A layer belongs to the nearest module of its pattern."""
    model = nn.Sequential(*(model_with_data("encoder")[0] for _ in range(2))).eval()
    x = values(1, 3, 5, 8)
    mappings = {f"*.{source}": [f"*.{name}" for name in readers] for source, readers in MAPPINGS.items()}
    smooth = converted(model, SmoothQuantConfig(mappings=mappings), x)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5
    changed = {
        name for name, value in smooth.named_parameters() if not value.equal(model.get_parameter(name))
    }
    assert {"0.query.weight", "1.key.weight", "1.norm1.bias", "0.linear1.weight"} <= changed
    assert not any(name.startswith(("0.out", "1.linear2")) for name in changed)


@pytest.mark.parametrize(
    ("mappings", "module"),
    [
        ({"nrom1": ["query"]}, None),
        ({"norm1": ["qeury"]}, None),
        ({"norm1": ["query"], "norm2": ["query", "linear1"]}, "query"),
        ({"norm*": ["query"]}, "query"),
        ({"norm2": ["linear2"]}, "linear2"),
        ({"linear1": ["norm1"]}, None),
    ],
)
def test_mappings_that_do_not_fit_are_refused(mappings: Mapping[str, list[str]], module: str | None) -> None:
    """Matching nothing, claiming a layer twice, other sizes; the model stays as it is."""
    model, _ = model_with_data("encoder")
    with refused(model, ConfigError, field="mappings", module=module):
        prepare(model, SmoothQuantConfig(mappings=mappings))


@pytest.mark.parametrize("mappings", [1, {"a": "b"}, {"a": []}, {"a": [1]}, {"": ["a"]}, {"re:(": ["a"]}])
def test_mappings_that_are_none_are_refused(mappings: dict[str, list[str]]) -> None:
    """When the config is made."""
    with pytest.raises(ConfigError) as error:
        SmoothQuantConfig(mappings=mappings)
    assert str(error.value.field).startswith("mappings")


def test_a_model_without_pairs_is_refused() -> None:
    """At once where an example shows it, else in the first pass, which reaches every layer."""
    model, x = nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)).eval(), values(1, 2, 8)
    with refused(model, ConfigError, field="model") as error:
        prepare(model, SmoothQuantConfig(), args=(x,))
    assert "0: its output is read by gelu" in str(error.value)
    prepared = prepare(model, SmoothQuantConfig())
    with pytest.raises(ConfigError, match="that only other layers read"):
        prepared(x)


@pytest.mark.parametrize("model", [nn.Linear(8, 8), nn.Sequential(nn.LayerNorm(8)), nn.ReLU()])
def test_a_model_that_cannot_have_a_pair_is_refused_at_once(model: nn.Module) -> None:
    """Two modules are the least that it takes, and one of them a layer."""
    with refused(model, ConfigError, field="model"):
        prepare(model, SmoothQuantConfig())


def test_an_example_that_does_not_fit_is_refused() -> None:
    """With what the model raises for it."""
    model, _ = model_with_data("encoder")
    with refused(model, ConfigError, field="args") as error:
        prepare(model, SmoothQuantConfig(), args=(torch.ones(3, 7),))
    assert "RuntimeError" in str(error.value)


def test_an_example_for_a_model_in_training_mode_is_refused() -> None:
    """Running it would change what batch norms remember."""
    model, x = model_with_data("convolutions")
    model.train()
    with refused(model, CalibrationError, field="training", module="1"):
        prepare(model, SmoothQuantConfig(), args=(x,))


@pytest.mark.parametrize("name", ["weight", "bias"])
@pytest.mark.parametrize("path", ["norm2", "linear1"])
@pytest.mark.parametrize("config", SMOOTHING.values(), ids=SMOOTHING)
def test_weights_that_are_not_finite_any_more_are_refused(
    config: SmoothingConfig, path: str, name: str
) -> None:
    """Where training has spoiled one between calibration and convert, naming module and tensor."""
    model, x = model_with_data("encoder")
    prepared = prepare(model, config)
    output_of(prepared, x)
    with torch.no_grad():
        model.get_parameter(f"{path}.{name}").view(-1)[3] = torch.inf
    with refused(prepared, NumericsError, field=name, module=path):
        convert(prepared)


def test_weights_that_are_not_finite_are_refused() -> None:
    """Naming the first of them."""
    model = Encoder().eval()
    with torch.no_grad():
        model.norm1.weight[2] = torch.nan
    with refused(model, NumericsError, field="weight", module="norm1"):
        prepare(model, SmoothQuantConfig())


def test_finding_pairs_changes_nothing() -> None:
    """The model is run, and is as it was; so are the inputs and random numbers."""
    model, x = model_with_data("encoder")
    kept = x.clone()
    with unchanged(model):
        prepare(model, SmoothQuantConfig(), args=(x,), inplace=False)
    assert x.equal(kept)


def test_hidden_states_that_are_returned_are_outputs() -> None:
    """A norm whose output the model returns is in no pair."""
    model, x = model_with_data("llama")
    found = names(pairs_of(model, x))
    with torch.no_grad():
        hidden = find_pairs(model, Candidates.of(model), lambda: model(x, output_hidden_states=True))
    assert "model.norm" in found
    assert "model.norm" not in names(hidden)


def test_values_that_only_a_mask_has_make_no_scale() -> None:
    """SmoothQuant refuses them by the layer that was given them, as every observer does."""
    norm = nn.LayerNorm(4)
    prepared = prepare(nn.Sequential(norm, nn.Linear(4, 4)).eval(), SmoothQuantConfig())
    nn.init.constant_(norm.weight, 1e31)
    prepared(torch.randn(3, 4))
    with pytest.raises(NumericsError, match="a mask's stand-in for minus infinity") as caught:
        convert(prepared)
    assert caught.value.problems[0].module == "1"
