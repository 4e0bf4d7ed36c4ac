"""Tiny random models of transformers' families, with batches that reach all of their layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from transformers import (
    BartConfig,
    BartModel,
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    ConvNextConfig,
    ConvNextForImageClassification,
    Gemma3nForCausalLM,
    Gemma3nTextConfig,
    Gemma4ForCausalLM,
    Gemma4TextConfig,
    JambaConfig,
    JambaForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    ResNetConfig,
    ResNetModel,
    SwinConfig,
    SwinForImageClassification,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperModel,
)

from gptq_definition import Batch
from tico_quantizers.testing import values

TOKENS = torch.arange(24).view(2, 12) % 30 + 3
SIZES = {"vocab_size": 40, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    """Return what `make` makes from seed 0, in evaluation mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = make()
    nn.Module.eval(model)
    return model


def images(seed: int, size: int) -> Tensor:
    """Return two square images of three channels."""
    return values(seed, 2, 3, size, size)


def t5() -> tuple[nn.Module, list[Batch]]:
    """Return an encoder and a decoder of one class."""
    config = T5Config.from_dict(
        {
            "vocab_size": 40,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 2,
            "num_decoder_layers": 2,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        }
    )
    batches: list[Batch] = [
        {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :5]},
        {"input_ids": TOKENS.flip(1), "decoder_input_ids": TOKENS[:, :7]},
    ]
    return seeded(lambda: T5ForConditionalGeneration(config)), batches


_STACKS = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    **SIZES,
}


def bart() -> tuple[nn.Module, list[Batch]]:
    """Return an encoder and a decoder of two classes."""
    config = BartConfig.from_dict({**_STACKS, "max_position_embeddings": 32})
    return seeded(lambda: BartModel(config)), [{"input_ids": TOKENS}, {"input_ids": TOKENS.flip(1)}]


def whisper() -> tuple[nn.Module, list[Batch]]:
    """Return an encoder behind convolutions, and a decoder."""
    sizes = {"num_mel_bins": 8, "max_source_positions": 10, "max_target_positions": 16}
    config = WhisperConfig.from_dict({**_STACKS, **sizes})
    batches: list[Batch] = [
        {"input_features": values(seed, 2, 8, 20), "decoder_input_ids": TOKENS[:, :4]} for seed in range(2)
    ]
    return seeded(lambda: WhisperModel(config)), batches


def bert() -> tuple[nn.Module, list[Batch]]:
    """Return an encoder."""
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return seeded(lambda: BertModel(config)), [{"input_ids": TOKENS}, {"input_ids": TOKENS.flip(1)}]


def jamba() -> tuple[nn.Module, list[Batch]]:
    """Return layers of two classes in turn, some with experts, some with weights that are read uncalled."""
    config = JambaConfig.from_dict(
        {
            **SIZES,
            "hidden_size": 16,
            "intermediate_size": 24,
            "num_hidden_layers": 4,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "num_experts": 1,
            "num_experts_per_tok": 1,
            "mamba_d_state": 4,
            "mamba_d_conv": 2,
            "mamba_dt_rank": 4,
        }
    )
    batches: list[Batch] = [{"input_ids": each, "use_cache": False} for each in (TOKENS, TOKENS.flip(1))]
    return seeded(lambda: JambaForCausalLM(config)), batches


def swin() -> tuple[nn.Module, list[Batch]]:
    """Return stages of blocks, with a merging of patches between them."""
    config = SwinConfig(
        image_size=16,
        patch_size=2,
        embed_dim=8,
        depths=[2, 2],
        num_heads=[2, 2],
        window_size=2,
        mlp_ratio=2.0,
    )
    batches: list[Batch] = [{"pixel_values": images(seed, 16)} for seed in range(2)]
    return seeded(lambda: SwinForImageClassification(config)), batches


def convnext() -> tuple[nn.Module, list[Batch]]:
    """Return stages of convolutional blocks."""
    config = ConvNextConfig(patch_size=2, num_stages=2, hidden_sizes=[8, 12], depths=[2, 2], image_size=16)
    batches: list[Batch] = [{"pixel_values": images(seed, 16)} for seed in range(2)]
    return seeded(lambda: ConvNextForImageClassification(config)), batches


def resnet() -> tuple[nn.Module, list[Batch]]:
    """Return stages of bottlenecks."""
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2])
    batches: list[Batch] = [{"pixel_values": images(seed, 16)} for seed in range(2)]
    return seeded(lambda: ResNetModel(config)), batches


def llava() -> tuple[nn.Module, list[Batch]]:
    """Return a vision tower and a language model, with a batch of text alone first."""
    vision = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = LlamaConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=39, vision_feature_layer=-1
    )
    tokens = TOKENS.clone()
    tokens[:, 2:6] = 39
    shown = [{"input_ids": each, "pixel_values": images(0, 8)} for each in (tokens, tokens.flip(0))]
    return seeded(lambda: LlavaForConditionalGeneration(config)), [{"input_ids": TOKENS}, *shown]


_GEMMA = {
    "vocab_size": 40,
    "vocab_size_per_layer_input": 40,
    "hidden_size": 16,
    "hidden_size_per_layer_input": 8,
    "intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "num_kv_shared_layers": 2,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "sliding_window": 8,
}


def gemma3n() -> tuple[nn.Module, list[Batch]]:
    """Return layers of which the later ones read the keys and values of the earlier ones."""
    own = {"laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0] * 4}
    config = Gemma3nTextConfig.from_dict({**_GEMMA, **own})
    return seeded(lambda: Gemma3nForCausalLM(config)), [{"input_ids": TOKENS}, {"input_ids": TOKENS.flip(1)}]


def gemma4() -> tuple[nn.Module, list[Batch]]:
    """Return such layers with another way to share."""
    config = Gemma4TextConfig.from_dict({**_GEMMA, "global_head_dim": 8})
    return seeded(lambda: Gemma4ForCausalLM(config)), [{"input_ids": TOKENS}, {"input_ids": TOKENS.flip(1)}]


FAMILIES: Mapping[str, Callable[[], tuple[nn.Module, list[Batch]]]] = {
    make.__name__: make
    for make in (t5, bart, whisper, bert, jamba, swin, convnext, resnet, llava, gemma3n, gemma4)
}
