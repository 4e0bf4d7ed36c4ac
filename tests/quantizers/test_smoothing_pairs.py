"""Pairs for smoothing: which are found, which are not and why, and what mappings say."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from smoothing_models import Encoder, converted, model_with_data, output_of, relative_difference
from tico.quantization import GPTQConfig, SmoothQuantConfig, convert, prepare
from tico_config import CalibrationError, ConfigError, NumericsError
from tico_quantizers.equivalence._channel_scale import as_channel_scale
from tico_quantizers.equivalence._smoothing_pairs import Candidates, FoundPairs, find_pairs
from tico_quantizers.testing import refused, unchanged
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
    assert left["model.layers.0.self_attn.q_proj"] == "its output is read by cat"
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
                output = output * nn.functional.linear(hidden, self.gate).softmax(-1)[..., :1]
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


REASONS = {
    "gate": "its output is read by linear",
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
    assert names(pairs_of(model, x)) == {"norm": ["expert", "gate"]}
    smooth = converted(model, SmoothQuantConfig(alpha=0.9), x)
    assert relative_difference(output_of(model, x), output_of(smooth, x)) < 1e-5


def test_layers_that_only_later_data_reach_are_an_error() -> None:
    """What an unseen branch reads is not known, so nothing is changed."""

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.one, self.two = nn.LayerNorm(8), nn.Linear(8, 8), nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            hidden = self.norm(x)
            output: Tensor = self.one(hidden) if float(x.sum()) > 0 else self.two(hidden)
            return output

    model = prepare(Branches().eval(), SmoothQuantConfig())
    model(torch.ones(2, 8))
    model(-torch.ones(2, 8))
    with refused(model, CalibrationError, module="two"):
        convert(model)


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
    """At once where an example shows it, else in the first pass."""
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
