"""Mixtures of experts."""

from __future__ import annotations

from typing import Final

import attrs

from zoo._architecture import Architecture, Settings
from zoo._language import GROUPED, TEXT, causal

ROUTED: Final[Settings] = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
_LATENT: Final[Settings] = {
    **TEXT,
    "num_key_value_heads": 4,
    "moe_intermediate_size": 24,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "n_group": 2,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 4,
    "v_head_dim": 8,
}

EXPERTS: Final[tuple[Architecture, ...]] = tuple(
    attrs.evolve(each, family="experts")
    for each in (
        causal("Mixtral", num_local_experts=4),
        causal("Qwen2Moe", ROUTED, num_experts=4, shared_expert_intermediate_size=24),
        causal("Qwen3Moe", ROUTED, num_experts=4),
        causal("GptOss", num_local_experts=4, num_experts_per_tok=2),
        causal("DeepseekV2", _LATENT, topk_method="greedy"),
        causal("DeepseekV3", _LATENT),
        causal(
            "Llama4",
            config="Llama4TextConfig",
            intermediate_size_mlp=48,
            num_local_experts=4,
            num_experts_per_tok=1,
            interleave_moe_layer_step=1,
            attention_chunk_size=8,
        ),
        causal("GraniteMoe", TEXT, num_local_experts=4, num_experts_per_tok=2),
        causal("Phimoe", num_local_experts=4, num_experts_per_tok=2),
        causal("Olmoe", TEXT, num_experts=4, num_experts_per_tok=2),
        causal("Glm4Moe", ROUTED, n_routed_experts=4, n_group=1, topk_group=1, first_k_dense_replace=1),
        causal("Ernie4_5_Moe", ROUTED, moe_num_experts=4, moe_k=2, moe_layer_start_index=0),
        causal("HunYuanMoEV1", GROUPED, num_experts=4, moe_topk=2),
        causal(
            "Dbrx",
            {
                "vocab_size": 40,
                "d_model": 32,
                "n_heads": 4,
                "n_layers": 2,
                "max_seq_len": 64,
                "pad_token_id": 0,
                "ffn_config": {"ffn_hidden_size": 48, "moe_num_experts": 4, "moe_top_k": 2},
                "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
            },
        ),
    )
)
