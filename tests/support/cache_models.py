"""A language model with two heads of keys and values, and the cache that its slow definition is."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM
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
