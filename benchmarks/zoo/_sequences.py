"""Encoders, and encoders with decoders, of text and speech."""

from __future__ import annotations

from typing import Final

import attrs
import torch

from zoo._architecture import Architecture, Call, Settings, of_transformers, pixels, text
from zoo._language import TEXT

_BOTH: Final[Settings] = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 0,
}
_T5: Final[Settings] = {
    "vocab_size": 40,
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "decoder_start_token_id": 0,
}


def both_texts(seed: int) -> Call:
    """Return the tokens of an encoder and of a decoder."""
    return {**text(seed), "decoder_input_ids": text(seed + 1)["input_ids"][:, 3:]}


def speech(seed: int) -> Call:
    """Return features of speech and tokens."""
    return {"input_features": pixels(seed, 2, 8, 32), "decoder_input_ids": text(seed)["input_ids"][:2]}


def sound(seed: int) -> Call:
    """Return two waves, the second of them padded at its end."""
    waves = pixels(seed, 2, 320)
    mask = torch.ones_like(waves, dtype=torch.int64)
    mask[1, 240:] = 0
    return {"input_values": waves * mask, "attention_mask": mask}


def _encoder(name: str, settings: Settings = TEXT) -> Architecture:
    return of_transformers("encoder", f"{name}ForMaskedLM", settings)


SEQUENCES: Final[tuple[Architecture, ...]] = (
    *(_encoder(name) for name in ("Bert", "Roberta", "ModernBert", "Electra", "DebertaV2", "Albert")),
    _encoder("DistilBert", {"vocab_size": 40, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}),
    attrs.evolve(
        of_transformers("encoder-decoder", "T5ForConditionalGeneration", _T5, both_texts, generates=True),
        larger=1,
    ),
    of_transformers("encoder-decoder", "BartForConditionalGeneration", _BOTH, both_texts, generates=True),
    of_transformers(
        "encoder-decoder",
        "WhisperForConditionalGeneration",
        {**_BOTH, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 32},
        speech,
        generates=True,
    ),
    of_transformers(
        "encoder",
        "Wav2Vec2ForCTC",
        {
            **TEXT,
            "conv_dim": [16, 16],
            "conv_stride": [4, 4],
            "conv_kernel": [8, 4],
            "num_conv_pos_embeddings": 8,
            "num_conv_pos_embedding_groups": 4,
        },
        sound,
    ),
)
