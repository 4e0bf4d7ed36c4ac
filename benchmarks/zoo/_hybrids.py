"""Models with states instead of attention in some or all of their layers."""

from __future__ import annotations

from typing import Final

import attrs

from zoo._architecture import Architecture, Settings
from zoo._experts import ROUTED
from zoo._language import GROUPED, TOKENS, causal

_LINEAR: Final[Settings] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
_STATES: Final[Settings] = {**TOKENS, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
_DELTA: Final[Settings] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}

HYBRIDS: Final[tuple[Architecture, ...]] = tuple(
    attrs.evolve(each, family="hybrid")
    for each in (
        causal("Qwen3Next", {**ROUTED, **_LINEAR}, num_experts=4, shared_expert_intermediate_size=24),
        attrs.evolve(causal("Mamba", _STATES), larger=1.5),
        causal("Mamba2", _STATES, num_heads=8, head_dim=8, n_groups=2),
        causal("Rwkv", _STATES, attention_hidden_size=32),
        causal("Jamba", GROUPED, num_experts=2, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1),
        causal("RecurrentGemma", {**GROUPED, "lru_width": 32, "num_hidden_layers": 3}),
        causal("Lfm2", GROUPED, layer_types=["conv", "full_attention"]),
        causal("FalconH1", {**GROUPED, **_DELTA}),
        causal("Bamba", {**GROUPED, **_DELTA, "mamba_expand": 1, "attn_layer_indices": [1]}),
        causal(
            "GraniteMoeHybrid",
            {**GROUPED, **_DELTA, "mamba_expand": 1},
            layer_types=["mamba", "attention"],
            num_local_experts=4,
            num_experts_per_tok=2,
            shared_intermediate_size=24,
        ),
        causal(
            "MiniMax",
            num_local_experts=4,
            num_experts_per_tok=2,
            layer_types=["linear_attention", "full_attention"],
        ),
        causal(
            "Zamba2",
            GROUPED,
            num_hidden_layers=3,
            layers_block_type=["mamba", "hybrid", "mamba"],
            mamba_d_state=8,
            n_mamba_heads=8,
            mamba_ngroups=1,
            num_mem_blocks=1,
            use_mem_rope=True,
            adapter_rank=4,
            attention_head_dim=16,
            attention_hidden_size=64,
        ),
        causal(
            "xLSTM", TOKENS, hidden_size=64, num_heads=4, num_hidden_layers=2, qk_dim_factor=1.0, chunk_size=8
        ),
    )
)
