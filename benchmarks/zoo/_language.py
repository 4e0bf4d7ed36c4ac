"""Language models that continue text, one block like another."""

from __future__ import annotations

from typing import Final

from zoo._architecture import Architecture, Settings, of_transformers

TEXT: Final[Settings] = {
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED: Final[Settings] = {**TEXT, "num_key_value_heads": 2, "head_dim": 8}
TOKENS: Final[Settings] = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_TWO_KINDS: Final[Settings] = {
    **GROUPED,
    "layer_types": ["sliding_attention", "full_attention"],
    "sliding_window": 8,
}


def causal(name: str, settings: Settings = GROUPED, config: str = "", **more: object) -> Architecture:
    """Return a language model."""
    return of_transformers(
        "causal", f"{name}ForCausalLM", {**settings, **more}, config=config, generates=True
    )


LANGUAGE: Final[tuple[Architecture, ...]] = (
    *(causal(name) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma", "Gemma2")),
    causal("Gemma3", _TWO_KINDS, "Gemma3TextConfig"),
    *(causal(name, TEXT) for name in ("Phi", "Phi3", "Cohere", "Olmo2", "Granite", "GPTNeoX")),
    causal("Glm4"),
    causal("StableLm", TEXT, num_key_value_heads=4),
    of_transformers(
        "causal",
        "GPT2LMHeadModel",
        {**TOKENS, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
        generates=True,
    ),
    causal("GPTJ", TOKENS, n_embd=32, n_layer=2, n_head=4, n_positions=64, rotary_dim=4),
    causal("OPT", TEXT, ffn_dim=48, word_embed_proj_dim=32),
    causal("Bloom", TOKENS, hidden_size=32, n_layer=2, n_head=4),
    causal("Falcon", TOKENS, hidden_size=32, num_hidden_layers=2, num_attention_heads=4),
    causal("Mpt", TOKENS, d_model=32, n_layers=2, n_heads=4, max_seq_len=64),
    causal("Exaone4", _TWO_KINDS),
    causal("Cohere2", _TWO_KINDS),
    causal("Ernie4_5"),
    causal("Arcee"),
    causal("SeedOss"),
    causal("HunYuanDenseV1"),
    causal("Nemotron", TEXT, num_key_value_heads=2),
    causal("Starcoder2", TEXT, num_key_value_heads=2),
    causal("Glm"),
    causal("Olmo3", _TWO_KINDS),
    causal(
        "MiniCPM3",
        TEXT,
        num_key_value_heads=4,
        q_lora_rank=8,
        kv_lora_rank=8,
        qk_nope_head_dim=4,
        qk_rope_head_dim=8,
        v_head_dim=8,
    ),
)
