"""Language models that are shown pictures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch

from zoo._architecture import Architecture, Call, Settings, of_transformers, pixels, text
from zoo._language import GROUPED
from zoo._vision import PICTURE

IMAGE: Final = 39
START: Final = 38


def shown(seed: int, places: int, pictures: Call) -> Call:
    """Return texts, two of three padded on the left, each with a run of `places` tokens for a picture."""
    given = text(seed)
    tokens, mask = given["input_ids"], given["attention_mask"]
    run = torch.full((3, places), IMAGE)
    start = torch.full((3, 1), START)
    return {
        "input_ids": torch.cat([tokens[:, :6], start, run, tokens[:, 6:]], 1),
        "attention_mask": torch.cat([mask[:, :6], torch.ones(3, places + 1).long(), mask[:, 6:]], 1),
        **pictures,
    }


def _with_picture(seed: int) -> Call:
    return shown(seed, 16, {"pixel_values": pixels(seed, 3, 3, 16, 16)})


def _with_types(places: int) -> Callable[[int], Call]:
    def call(seed: int) -> Call:
        given = shown(seed, places, {"pixel_values": pixels(seed, 3, 3, 16, 16)})
        return {**given, "token_type_ids": (given["input_ids"] == IMAGE).long()}

    return call


def _idefics(seed: int) -> Call:
    return shown(seed, 4, {"pixel_values": pixels(seed, 3, 1, 3, 16, 16)})


def _patches(seed: int) -> Call:
    """Return pictures of 4 times 4 patches, in a row, of which 2 times 2 are one token."""
    grid = torch.tensor([[1, 4, 4]] * 3)
    given = shown(seed, 4, {"pixel_values": pixels(seed, 48, 3 * 2 * 4 * 4), "image_grid_thw": grid})
    return {**given, "mm_token_type_ids": (given["input_ids"] == IMAGE).int()}


_ROTARY: Final[Settings] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}


def _qwen(name: str, vision: Settings, **more: object) -> Architecture:
    settings: Settings = {
        "text_config": {**GROUPED, "rope_parameters": _ROTARY, **more},
        "vision_config": {
            "depth": 2,
            "num_heads": 4,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            **vision,
        },
        "image_token_id": IMAGE,
        "video_token_id": 37,
        "vision_start_token_id": START,
        "vision_end_token_id": 36,
    }
    return _pictured(name, settings, _patches)


def _pictured(name: str, settings: Settings, call: Callable[[int], Call]) -> Architecture:
    model = f"{name}ForConditionalGeneration"
    return of_transformers("vision-language", model, settings, call, generates=True)


_DEEPSTACK: Final[Settings] = {
    "hidden_size": 32,
    "out_hidden_size": 32,
    "intermediate_size": 48,
    "num_position_embeddings": 16,
    "deepstack_visual_indexes": [0],
}
_SIGLIP: Final[Settings] = {"model_type": "siglip_vision_model", **PICTURE, "vision_use_head": False}

VISION_LANGUAGE: Final[tuple[Architecture, ...]] = (
    _pictured(
        "Llava",
        {
            "vision_config": {"model_type": "clip_vision_model", **PICTURE},
            "text_config": {"model_type": "llama", **GROUPED},
            "image_token_index": IMAGE,
            "vision_feature_layer": -1,
        },
        _with_picture,
    ),
    _qwen("Qwen2VL", {"embed_dim": 32, "hidden_size": 32, "mlp_ratio": 2}),
    _qwen(
        "Qwen2_5_VL",
        {
            "hidden_size": 32,
            "out_hidden_size": 32,
            "intermediate_size": 48,
            "window_size": 8,
            "fullatt_block_indexes": [1],
        },
    ),
    _qwen("Qwen3VL", _DEEPSTACK),
    _qwen("Qwen3VLMoe", _DEEPSTACK, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24),
    _pictured(
        "Gemma3",
        {
            "vision_config": _SIGLIP,
            "text_config": {
                "model_type": "gemma3_text",
                **GROUPED,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "mm_tokens_per_image": 4,
            "image_token_index": IMAGE,
            "boi_token_index": START,
            "eoi_token_index": 37,
        },
        _with_types(4),
    ),
    _pictured(
        "Idefics3",
        {
            "vision_config": {"model_type": "idefics3_vision", **PICTURE},
            "text_config": {"model_type": "llama", **GROUPED},
            "image_token_id": IMAGE,
            "scale_factor": 2,
            "pad_token_id": 0,
        },
        _idefics,
    ),
    _pictured(
        "PaliGemma",
        {
            "vision_config": {**_SIGLIP, "projection_dim": 32},
            "text_config": {"model_type": "gemma", **GROUPED},
            "projection_dim": 32,
            "image_token_index": IMAGE,
        },
        _with_types(16),
    ),
)
