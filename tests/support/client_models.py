"""A language model of each kind that clients are tried on: float, and converted by several algorithms."""

from __future__ import annotations

import copy
import functools

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from tico.quantization import AWQConfig, GPTQConfig, PTQConfig, SmoothQuantConfig, convert, prepare
from tico.quantization.config import DType, affine
from tico_config import BaseConfig

VOCABULARY = 64
TOKENS = torch.arange(144).view(3, 48) * 7 % VOCABULARY

_GPTQ = GPTQConfig(bits=4, group_size=64, show_progress=False)
CONFIGS: dict[str, tuple[BaseConfig, ...]] = {
    "GPTQ": (_GPTQ,),
    "PTQ": (PTQConfig(activation=affine(DType.uint(16))),),
    "AWQ": (AWQConfig(group_size=64, show_progress=False),),
    "SmoothQuant+GPTQ": (SmoothQuantConfig(), _GPTQ),
}
"""The configs of each kind: W4 in groups of 64, W8A16, and what moves scales first."""

KINDS = tuple(CONFIGS)


def float_model() -> LlamaForCausalLM:
    """Return a random LLaMA of two layers, always the same one, in evaluation mode."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    nn.Module.eval(model)
    return model


def converted(kind: str) -> LlamaForCausalLM:
    """Return a converted model of `kind`, an own copy."""
    return copy.deepcopy(_convert(kind))


@functools.cache
def _convert(kind: str) -> LlamaForCausalLM:
    return quantize(float_model(), kind, TOKENS)


def quantize(model: LlamaForCausalLM, kind: str, tokens: Tensor) -> LlamaForCausalLM:
    """Return `model`, converted by the configs of `kind` with `tokens` as data."""
    for config in CONFIGS[kind]:
        prepare(model, config, args=(tokens,))
        model(tokens)
        convert(model)
    return model


def both(kind: str) -> tuple[LlamaForCausalLM, LlamaForCausalLM]:
    """Return the float model, on which a trial is run for control, and the converted one."""
    return float_model(), converted(kind)


def codes_of(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of all packed codes by name, without what adapters add to the names."""
    return {
        name.removeprefix("base_model.model.").replace(".base_layer", ""): buffer.clone()
        for name, buffer in model.named_buffers()
        if name.endswith(".codes")
    }


def generated(model: nn.Module, prompt: Tensor, **settings: object) -> Tensor:
    """Return what a language model makes of `prompt`, which is in front."""
    tokens: Tensor = getattr(model, "generate")(prompt, **settings)  # noqa: B009  # of many types
    return tokens
