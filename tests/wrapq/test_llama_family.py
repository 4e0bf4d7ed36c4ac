"""Wrapped models of the LLaMA family stay language models: masks, caches, positions, precisions."""

from __future__ import annotations

import copy
import functools
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
import torch
from torch import Tensor, nn
from transformers import DynamicCache, GenerationConfig, PreTrainedModel, StaticCache
from transformers.models.llama.modeling_llama import LlamaAttention, LlamaDecoderLayer

from exported_programs import foreign_operators, grids_on_activations
from llama_families import FAMILIES, TOKENS, LogitsOf, calls, converted, grid_count, padded, tiny
from tico.quantization import PTQConfig, convert, coverage, load_quantized, prepare, save_quantized
from tico.quantization.config import DType, UnsupportedError, affine, no_quant
from tico_config import PerToken
from tico_quantizers import QuantizedEmbedding, QuantizedModule, children
from tico_quantizers.testing import refused
from tico_wrapq import QuantLlamaAttention, QuantLlamaDecoderLayer
from tiny_models import logits

PER_TOKEN = PTQConfig(activation=affine(DType.int(8), granularity=PerToken()))
every_family = pytest.mark.parametrize("family", FAMILIES)
both_grids = pytest.mark.parametrize("config", [PTQConfig(), PER_TOKEN], ids=["static", "per token"])


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_prepared_model_has_the_logits_of_eager_attention(family: str, dtype: torch.dtype) -> None:
    """Bit for bit, for whole and padded batches, given positions, and all three formats."""
    model = tiny(family, dtype=dtype)
    expected = {name: model(**call).logits for name, call in calls().items()}
    prepared = prepare(model, PTQConfig())
    for name, call in calls().items():
        assert torch.equal(prepared(**call).logits, expected[name]), name


@every_family
def test_prepared_model_has_the_logits_of_sdpa(family: str) -> None:
    """To 1e-5, also where torch makes the causal mask; rows of padding included."""
    model = tiny(family, "sdpa")
    expected = {name: model(**call).logits for name, call in calls().items()}
    prepared = prepare(model, PTQConfig())
    for name, call in calls().items():
        assert (prepared(**call).logits - expected[name]).abs().max() < 1e-5, name


def _generated(model: nn.Module, cache: str, call: dict[str, Tensor]) -> Tensor:
    assert isinstance(model, PreTrainedModel)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=6,
        min_new_tokens=6,
        do_sample=False,
        pad_token_id=0,
        cache_implementation=cache,
        disable_compile=True,
    )
    found: Tensor = model.generate(**call, generation_config=settings)  # type: ignore[operator]
    return found


@every_family
@pytest.mark.parametrize("cache", ["dynamic", "static"])
def test_prepared_model_generates_what_the_float_model_does(family: str, cache: str) -> None:
    """With either cache, from a batch that is padded on the left."""
    model, call = tiny(family), padded("left")
    expected = _generated(model, cache, call)
    assert torch.equal(_generated(prepare(model, PTQConfig()), cache, call), expected)


def _stepwise(model: nn.Module, cache: DynamicCache | StaticCache) -> Tensor:
    """Return the logits of a prefill of eight tokens and of single tokens after it."""
    found = [model(TOKENS[:, :8], past_key_values=cache, use_cache=True).logits]
    for at in range(8, TOKENS.shape[1]):
        position = torch.full((1, 1), at)
        step = model(TOKENS[:, at : at + 1], past_key_values=cache, use_cache=True, position_ids=position)
        found.append(step.logits)
    return torch.cat(found, 1)


@every_family
@both_grids
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_decoding_equals_prefill(family: str, config: PTQConfig, attention: str) -> None:
    """Token by token, with either cache, the quantized model has the logits of one pass.

    Sums of another length are added up in another order, so that a value can differ by an ulp. One that lies
    between two codes then moves by a whole step: at about one position in a hundred, depending on the
    processor. What has moved stays in the cache and can move all that come later: one of the two texts may
    differ from its first decoded token on.
    """
    model = converted(family, config, attention)
    expected = logits(model, TOKENS)
    assert isinstance(model, PreTrainedModel)
    for cache in (DynamicCache(config=model.config), StaticCache(config=model.config, max_cache_len=16)):
        near = (_stepwise(model, cache) - expected).abs().amax(-1) < 1e-4
        assert bool(near.all(-1).any())
        assert near.double().mean() >= 20 / 24


@every_family
def test_padding_does_not_reach_the_text(family: str) -> None:
    """The quantized model has the logits of the rows alone, as far as rounding at other positions goes."""
    model, call = converted(family), padded("right")
    with_padding: Tensor = model(**call).logits
    # What comes after a token is masked: its grids and its weight are those of the row without padding.
    assert (with_padding[0, :8] - logits(model, TOKENS[:1, :8])[0]).abs().max() < 1e-4


@every_family
def test_every_step_of_the_attention_is_on_a_grid(family: str) -> None:
    """All points that the layer reaches see data; a layer without rotation has none of its points."""
    model = converted(family)
    for layer in (0, 1):
        attention = model.get_submodule(f"model.layers.{layer}.self_attn")
        assert isinstance(attention, QuantLlamaAttention)
        names = {name for name, point in attention.named_points() if point.fixed is not None}
        declared = {each.name for each in attention.points}
        rotary = {name for name in declared if name[:2] in ("q_", "k_") or name in ("cos", "sin")}
        assert names == (declared if attention.use_rope else declared - rotary)


@functools.cache
def _all_points() -> int:
    return grid_count(converted("Llama"))


@pytest.mark.parametrize("name", [each.name for each in QuantLlamaAttention.points])
def test_each_step_can_be_left_in_float(name: str) -> None:
    """An override on the path of one point leaves out that one and no other."""
    path = f"model.layers.0.self_attn.{name}"
    model = converted("Llama", PTQConfig(overrides={path: no_quant()}))
    assert grid_count(model) == _all_points() - 1
    attention = model.get_submodule("model.layers.0.self_attn")
    assert isinstance(attention, QuantLlamaAttention)
    assert attention.point(name).fixed is None


def test_masked_logits_take_no_part_of_the_range() -> None:
    """The grid of the logits spans those that count, though the others are larger by far."""
    model = tiny("Llama")
    prepared = prepare(model, PTQConfig())
    prepared(TOKENS)
    attention = convert(prepared).get_submodule("model.layers.0.self_attn")
    assert isinstance(attention, QuantLlamaAttention)
    for name in ("logits", "scaled", "masked"):
        grid = attention.point(name).fixed
        assert grid is not None
        assert grid.scale.item() < 1.0


@pytest.mark.parametrize(
    ("family", "config"),
    [*((family, PTQConfig()) for family in FAMILIES), ("Llama", PER_TOKEN)],
    ids=[*FAMILIES, "Llama per token"],
)
def test_exported_program_has_a_pair_of_nodes_for_each_fixed_grid(family: str, config: PTQConfig) -> None:
    """Exactly one, no operator of ours, and the bits of the module."""
    model = converted(family, config, "sdpa")
    program = torch.export.export(LogitsOf(model), (TOKENS,))
    assert grids_on_activations(program) == grid_count(model, fixed_only=True)
    assert foreign_operators(program) == []
    assert torch.equal(program.module()(TOKENS), logits(model, TOKENS))


@every_family
def test_saved_model_comes_back(family: str, tmp_path: Path) -> None:
    """From its folder alone, bit for bit."""
    model = converted(family)
    save_quantized(model, tmp_path)
    assert torch.equal(logits(load_quantized(tmp_path), TOKENS), logits(model, TOKENS))


def test_saved_model_comes_back_in_a_fresh_process(tmp_path: Path) -> None:
    """Bit for bit, with its hidden states."""
    model = converted("SmolLM3")
    save_quantized(model, tmp_path)
    torch.save(model(TOKENS, output_hidden_states=True).hidden_states, tmp_path / "expected.pt")
    script = (
        "import sys, torch; from tico.quantization import load_quantized;"
        "model = load_quantized(sys.argv[1]); expected = torch.load(sys.argv[1] + '/expected.pt');"
        f"found = model(torch.tensor({TOKENS.tolist()}), output_hidden_states=True).hidden_states;"
        "assert len(found) == len(expected) == 3 and all(map(torch.equal, found, expected))"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", script, str(tmp_path)], check=True)


@every_family
def test_hidden_states_and_attentions_are_those_of_the_float_model(family: str) -> None:
    """Whether they were asked for before the model was prepared or not."""
    model = tiny(family)
    wanted = {"output_hidden_states": True, "output_attentions": True}
    expected = copy.deepcopy(model)(TOKENS, **wanted)
    for earlier in (False, True):
        prepared = prepare(model, PTQConfig(), inplace=False)
        found = prepared(TOKENS, **wanted)
        assert len(found.hidden_states) == 3, earlier
        assert all(map(torch.equal, found.hidden_states, expected.hidden_states))
        assert len(found.attentions) == 2, earlier
        assert all(map(torch.equal, found.attentions, expected.attentions))
        model(TOKENS, **wanted)


@every_family
def test_copy_and_state_dict_carry_everything(family: str) -> None:
    """A deepcopy gives the same bits, and so does a model that takes over the state."""
    model = converted(family)
    copied = copy.deepcopy(model)
    assert torch.equal(logits(copied, TOKENS), logits(model, TOKENS))
    other = converted(family, PTQConfig())
    other.load_state_dict(model.state_dict())
    assert torch.equal(logits(other, TOKENS), logits(model, TOKENS))


@every_family
def test_nothing_that_computes_is_left_out(family: str) -> None:
    """The coverage of a strict run lists points, or that a module only makes constants or hands on."""
    lines = [line for line in coverage(converted(family)).lines if not line.points]
    assert {line.path for line in lines} <= {"", "model", "model.rotary_emb"}


def test_model_is_calibrated_again_after_loading(tmp_path: Path) -> None:
    """Wrappers that stayed are taken apart once more, and get the new grids."""
    save_quantized(converted("SmolLM3"), tmp_path)
    again = prepare(load_quantized(tmp_path), PTQConfig(activation=affine(DType.int(16))))
    again(TOKENS)
    attention = convert(again).get_submodule("model.layers.0.self_attn")
    assert isinstance(attention, QuantLlamaAttention)
    assert {point.label for _, point in attention.named_points()} == {"int16 static"}


def test_scaled_embedding_shares_its_codes_with_the_head() -> None:
    """Gemma's factor stays beside the codes, which are those of the tied head."""
    model = converted("Gemma")
    table, head = model.get_submodule("model.embed_tokens"), model.get_submodule("lm_head")
    assert isinstance(table, QuantizedEmbedding)
    assert isinstance(head, QuantizedModule)
    assert table.packed.codes is head.packed.codes
    assert table.factor == 4.0


class _Scaled(LlamaAttention):
    def forward(self, hidden_states: Tensor, **kwargs: object) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        output, weights = super().forward(hidden_states, **kwargs)  # type: ignore[arg-type]
        return 2 * output, weights


class _Same(LlamaDecoderLayer):  # type: ignore[no-untyped-call]  # its hook for subclasses
    pass


def test_forward_of_a_subclass_is_not_replaced() -> None:
    """A subclass that computes something else keeps its forward: steps have points, or layers alone do."""
    model = tiny("Llama")
    for layer in (0, 1):
        model.get_submodule(f"model.layers.{layer}.self_attn").__class__ = _Scaled
    expected = model(TOKENS).logits
    declared = PTQConfig(steps="declared")
    with refused(model, UnsupportedError, module="model.layers.0.self_attn"):
        prepare(model, declared)
    prepared = prepare(copy.deepcopy(model), PTQConfig())
    prepared(TOKENS)
    lines = {line.path: line.points for line in coverage(convert(prepared)).lines}
    assert "mul_0 uint8 static" in lines["model.layers.1.self_attn"]
    prepared = prepare(model, attrs.evolve(declared, strict_wrap=False))
    assert torch.equal(prepared(TOKENS).logits, expected)
    attention = convert(prepared).get_submodule("model.layers.1.self_attn")
    assert isinstance(attention, _Scaled)
    assert all(isinstance(child, QuantizedModule) for child in children(attention).values())


def test_subclass_without_a_forward_of_its_own_is_wrapped() -> None:
    """What only has another name is the same layer."""
    model = tiny("Llama")
    model.get_submodule("model.layers.0").__class__ = _Same
    prepare(model, PTQConfig())
    assert isinstance(model.get_submodule("model.layers.0"), QuantLlamaDecoderLayer)


def test_other_attention_is_refused() -> None:
    """The points need the weights, which fused kernels do not give."""
    model = tiny("Llama")
    getattr(model, "config")._attn_implementation = "flex_attention"  # noqa: B009  # torch's type
    with refused(model, UnsupportedError, module="model.layers.0.self_attn") as error:
        prepare(model, PTQConfig())
    assert "'eager' or 'sdpa'" in str(error.value)
