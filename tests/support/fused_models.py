"""Tiny models of transformers that keep the experts of a layer in parameters of three axes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import torch
from torch import Tensor, nn
from transformers import (
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from tico_quantizers.testing import seeded

_SIZES: Final = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_GROUPED: Final = {**_SIZES, "num_key_value_heads": 2, "head_dim": 4}
_LATENT: Final = {
    **dict.fromkeys(("qk_rope_head_dim", "qk_nope_head_dim", "v_head_dim", "kv_lora_rank", "q_lora_rank"), 8),
    **dict.fromkeys(("n_group", "topk_group", "n_shared_experts"), 1),
    "first_k_dense_replace": 0,
}


def _mixtral() -> nn.Module:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return MixtralForCausalLM(MixtralConfig.from_dict({**_GROUPED, **sizes}))


def _qwen3() -> nn.Module:
    sizes = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    return Qwen3MoeForCausalLM(Qwen3MoeConfig.from_dict({**_GROUPED, **sizes}))


def _gpt_oss() -> nn.Module:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 2}
    return GptOssForCausalLM(GptOssConfig.from_dict({**_GROUPED, **sizes}))


def _llama4() -> nn.Module:
    sizes = {"num_local_experts": 4, "num_experts_per_tok": 1, "interleave_moe_layer_step": 1}
    config = Llama4TextConfig.from_dict({**_GROUPED, **sizes, "intermediate_size_mlp": 24})
    return Llama4ForCausalLM(config)


def _deepseek() -> nn.Module:
    sizes = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
    config = DeepseekV3Config.from_dict({**_SIZES, **_LATENT, **sizes, "num_key_value_heads": 4})
    return DeepseekV3ForCausalLM(config)


_MODELS: Final[Mapping[str, Callable[[], nn.Module]]] = {
    "mixtral": _mixtral,
    "qwen3": _qwen3,
    "gpt_oss": _gpt_oss,
    "llama4": _llama4,
    "deepseek": _deepseek,
}
FUSED: Final = tuple(_MODELS)


def fused_model(name: str) -> nn.Module:
    """Return the model of that name, always the same one, with weights large enough to be told apart."""

    def make() -> nn.Module:
        model = _MODELS[name]()
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape)
                parameter.copy_(noise * 0.3 if parameter.ndim > 1 else parameter + noise * 0.1)
        return model

    return seeded(make)


def token_ids(seed: int = 1, rows: int = 6, length: int = 16) -> Tensor:
    """Return tokens (rows, length) that are no padding."""
    return torch.randint(3, 40, (rows, length), generator=torch.Generator().manual_seed(seed))


def experts_of(model: nn.Module, layer: int = 1) -> tuple[str, nn.Module]:
    """Return path and module of the experts of a layer."""
    start = f"model.layers.{layer}."
    return next(
        (path, module)
        for path, module in model.named_modules()
        if path.startswith(start) and path.endswith(".experts")
    )
