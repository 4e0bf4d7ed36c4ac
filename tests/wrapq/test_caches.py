"""Families without a wrapper decode on the grids that a whole text has, with every kind of cache."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Final

import pytest
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    Cache,
    DynamicCache,
    EncoderDecoderCache,
    PretrainedConfig,
    PreTrainedModel,
    StaticCache,
)

from llama_families import TOKENS, padded
from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import DType, affine
from tico_config import UnsupportedError
from tico_quantizers.testing import seeded
from tico_wrapq import QuantPoint, StepPoints
from tiny_models import tiny_llama, values

CONFIG: Final = PTQConfig(activation=affine(DType.int(16)), steps="auto", on_uncalibrated="skip")
LENGTH: Final = TOKENS.shape[1]
PARTS: Final = (TOKENS[:, :7], *(TOKENS[:, at : at + 1] for at in range(7, LENGTH)))

_SIZES: Final[Mapping[str, object]] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_BY_TURNS: Final[Mapping[str, object]] = {
    **_SIZES,
    "sliding_window": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
_BOTH_STACKS: Final[Mapping[str, object]] = {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "pad_token_id": 0,
}

# What makes each family differ: windows, positions that are looked up, added to scores or turned, experts.
FAMILIES: Final[Mapping[str, tuple[str, Mapping[str, object]]]] = {
    "Gemma2ForCausalLM": ("Gemma2Config", _BY_TURNS),
    "Gemma3ForCausalLM": ("Gemma3TextConfig", _BY_TURNS),
    "GPT2LMHeadModel": ("GPT2Config", {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2}),
    "BloomForCausalLM": ("BloomConfig", {"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "MixtralForCausalLM": ("MixtralConfig", {**_SIZES, "sliding_window": 4, "num_local_experts": 2}),
}
TRANSLATORS: Final[Mapping[str, tuple[str, Mapping[str, object]]]] = {
    "BartForConditionalGeneration": ("BartConfig", _BOTH_STACKS),
    "T5ForConditionalGeneration": (
        "T5Config",
        {"vocab_size": 40, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2},
    ),
}
CACHES: Final[Mapping[str, Callable[[PretrainedConfig], Cache]]] = {
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=LENGTH),
}
WITH_SDPA: Final = ("Gemma3ForCausalLM", "GPT2LMHeadModel", "MixtralForCausalLM")
every_model = pytest.mark.parametrize(
    ("family", "attention"),
    [*((name, "eager") for name in FAMILIES), *((name, "sdpa") for name in WITH_SDPA)],
)
every_cache = pytest.mark.parametrize("cache", CACHES)


def tiny(family: str, attention: str = "eager") -> PreTrainedModel:
    """Return a random model of two layers, always the same one, in evaluation mode."""
    config_name, settings = {**FAMILIES, **TRANSLATORS}[family]
    config = getattr(transformers, config_name)(**settings, attn_implementation=attention)
    model = seeded(lambda: getattr(transformers, family)(config))
    assert isinstance(model, PreTrainedModel)
    return model


def at_once(model: PreTrainedModel) -> Tensor:
    """Return the logits of one pass over all tokens, without a cache."""
    found: Tensor = model(TOKENS, use_cache=False).logits
    return found


def one_by_one(model: PreTrainedModel, cache: Cache) -> Tensor:
    """Return the logits of a prompt and of the tokens after it, each in a pass of its own."""
    return torch.cat([model(part, past_key_values=cache).logits for part in PARTS], 1)


@functools.cache
def converted(family: str, attention: str) -> PreTrainedModel:
    """Return the model that one pass and batches with padding have calibrated."""
    prepared = prepare(tiny(family, attention), CONFIG)
    for call in ({"input_ids": TOKENS}, padded("left"), padded("right")):
        prepared(**call, use_cache=False)
    model = convert(prepared)
    assert isinstance(model, PreTrainedModel)
    return model


@functools.cache
def names_after(family: str, attention: str, run: Callable[[PreTrainedModel], Tensor]) -> set[str]:
    """Return the paths of the steps that `run` finds in the model."""
    prepared = prepare(tiny(family, attention), CONFIG)
    assert isinstance(prepared, PreTrainedModel)
    run(prepared)
    return {point.path for _, point in points(convert(prepared))}


def points(model: nn.Module) -> list[tuple[str, QuantPoint]]:
    """Return all points of steps by name."""
    steps = (module for module in model.modules() if isinstance(module, StepPoints))
    return [each for module in steps for each in module.named_points()]


def near(found: Tensor, expected: Tensor) -> Tensor:
    """Tell where all logits of a token are the same, but for values that take the next code.

    A product of another shape adds up in another order, which moves a value between two codes to the other
    one: by 2^-16 of its range. The sums of the two layers carry tens of such values, less than 2^-9 together.
    """
    return (found - expected).abs().amax(-1) < expected.abs().max() * 2**-9


@every_model
@every_cache
@torch.no_grad()
def test_decoding_finds_the_steps_of_one_pass(family: str, attention: str, cache: str) -> None:
    """The steps have the same names with a cache and without."""
    decoded = names_after(family, attention, lambda model: one_by_one(model, CACHES[cache](model.config)))
    assert decoded == names_after(family, attention, at_once)


@every_model
@every_cache
@torch.no_grad()
def test_decoding_is_on_the_grids_of_one_pass(family: str, attention: str, cache: str) -> None:
    """Token by token the model gives what one pass over all of them gives, also beyond a window."""
    model = converted(family, attention)
    assert near(one_by_one(model, CACHES[cache](model.config)), at_once(model)).all()


@every_model
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_padding_does_not_reach_the_text(family: str, attention: str, side: str) -> None:
    """The logits of a padded row are those of its tokens alone."""
    model, call = converted(family, attention), padded(side)
    real = call["attention_mask"][0].bool()
    positions = (call["attention_mask"].cumsum(-1) - 1).clamp(min=0)
    given = {} if family.startswith("Bloom") else {"position_ids": positions}  # it makes them of the mask
    found = model(**call, **given).logits[0, real]
    assert near(found, model(TOKENS[:1, real]).logits[0]).all()


ENCODED: Final = padded("right")


def translated(model: PreTrainedModel) -> Tensor:
    """Return the logits of all tokens of the decoder in one pass."""
    found: Tensor = model(**ENCODED, decoder_input_ids=TOKENS, use_cache=False).logits
    return found


def both_caches(model: PreTrainedModel, kind: str) -> EncoderDecoderCache:
    """Return the cache of a decoder's own keys, and that of those it makes of the encoder's output."""
    make = CACHES[kind]
    config = model.config.get_text_config(decoder=True)
    return EncoderDecoderCache(make(config), make(config))


def translated_one_by_one(model: PreTrainedModel, cache: EncoderDecoderCache) -> Tensor:
    """Return the same of a prompt and of the tokens after it, one by one; the encoder runs once."""
    encoded = model.get_encoder()(**ENCODED)
    known = {"encoder_outputs": encoded, "attention_mask": ENCODED["attention_mask"]}
    return torch.cat(
        [model(**known, decoder_input_ids=part, past_key_values=cache).logits for part in PARTS], 1
    )


@pytest.mark.parametrize("family", TRANSLATORS)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@every_cache
@torch.no_grad()
def test_a_decoder_reads_the_encoder_once(family: str, attention: str, cache: str) -> None:
    """With caches for both kinds of keys, its steps have the names and the grids of one pass."""
    decoded = names_after(
        family, attention, lambda model: translated_one_by_one(model, both_caches(model, cache))
    )
    assert decoded == names_after(family, attention, translated)
    prepared = prepare(tiny(family, attention), CONFIG)
    assert isinstance(prepared, PreTrainedModel)
    translated(prepared)
    model = convert(prepared)
    assert isinstance(model, PreTrainedModel)
    assert near(translated_one_by_one(model, both_caches(model, cache)), translated(model)).all()


@pytest.mark.parametrize("name", ["cache", "past_key_values"])
def test_an_attention_takes_its_cache_by_either_name(name: str) -> None:
    """Versions of transformers give it by one or the other; the next token attends to what is in it."""
    model = prepare(tiny_llama(), PTQConfig())
    attention, cache = model.get_submodule("model.layers.0.self_attn"), DynamicCache()
    for start, stop, keys in ((0, 2, 2), (2, 3, 3)):
        turns = values(1, 1, stop - start, 8), values(2, 1, stop - start, 8)
        _, weights = attention(values(3, 1, stop - start, 16), turns, None, **{name: cache})
        assert weights.shape[-1] == keys


def test_a_cache_by_an_unknown_name_is_refused() -> None:
    """It would be left out in silence."""
    attention = prepare(tiny_llama(), PTQConfig()).get_submodule("model.layers.0.self_attn")
    turns = values(1, 1, 2, 8), values(2, 1, 2, 8)
    with pytest.raises(UnsupportedError, match="a cache under the name of") as caught:
        attention(values(3, 1, 2, 16), turns, None, memory=DynamicCache())
    assert (caught.value.module, caught.value.field) == ("model.layers.0.self_attn", "memory")
