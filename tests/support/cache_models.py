"""A language model with two heads of keys and values, and the cache that its slow definition is."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    DynamicCache,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)
from transformers.cache_utils import DynamicLayer

from cache_definition import kept
from tico_modules import LayerCache, find_cache


def two_heads(attention: str = "sdpa") -> LlamaForCausalLM:
    """Return a random LLaMA of two layers, always the same one, in evaluation mode."""
    config = LlamaConfig(  # type: ignore[call-arg]  # its base takes the attention
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        attn_implementation=attention,
        pad_token_id=0,
        eos_token_id=None,
        bos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.train(False)
    for layer in model.model.layers:  # weights as large as those of trained models
        for part in (layer.self_attn.q_proj, layer.self_attn.k_proj, layer.self_attn.v_proj):
            part.weight.data *= 12
    return model


def half_sliding() -> Gemma3ForCausalLM:
    """Return a random Gemma 3 whose first layer sees the last 8 tokens, and whose second sees all."""
    config = Gemma3TextConfig(
        vocab_size=40,
        hidden_size=32,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Gemma3ForCausalLM(config)
    model.train(False)
    return model


def all_at_once() -> nn.Module:
    """Return an encoder, which has the arguments of a decoder."""
    sizes = BertConfig(hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2)
    model: nn.Module = BertModel(sizes).train(False)
    return model


def with_encoder() -> nn.Module:
    """Return a model with an encoder and a decoder."""
    sizes = T5Config(d_model=8, d_ff=8, num_layers=1, num_heads=2)
    model: nn.Module = T5ForConditionalGeneration(sizes).train(False)
    return model


def texts(seed: int, samples: int = 2, tokens: int = 40) -> Tensor:
    """Return random token numbers, always the same ones for a seed."""
    return torch.randint(1, 40, (samples, tokens), generator=torch.Generator().manual_seed(seed))


class DefinedLayer(DynamicLayer):  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    """Keeps all floats, and hands on what a quantized cache would read."""

    def __init__(self, layer: LayerCache) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.layer = layer

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: object, **kwargs: object
    ) -> tuple[Tensor, Tensor]:
        """Return the values of the definition."""
        key, value = super().update(key_states, value_states, *args, **kwargs)
        return kept(key, self.layer, "key"), kept(value, self.layer, "value")


class DefinedCache(DynamicCache):
    """The slow definition of the cache that a converted `model` makes."""

    def __init__(self, model: LlamaForCausalLM) -> None:
        super().__init__(config=model.config)
        formats = find_cache(model)
        assert formats is not None
        for number, each in enumerate(formats.layers):
            if each is not None:
                self.layers[number] = DefinedLayer(each)
