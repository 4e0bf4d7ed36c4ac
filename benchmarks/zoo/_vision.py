"""Models of pictures, and towers for pictures and texts."""

from __future__ import annotations

from typing import Final

from zoo._architecture import Architecture, Call, Settings, of_transformers, picture, text
from zoo._language import TEXT

PICTURE: Final[Settings] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
_RESNET: Final[Settings] = {
    "model_type": "resnet",
    "embedding_size": 16,
    "hidden_sizes": [16, 32],
    "depths": [2, 2],
    "layer_type": "basic",
    "out_features": ["stage2"],
}


def _seen(name: str, settings: Settings = PICTURE, size: int = 16, config: str = "") -> Architecture:
    return of_transformers("vision", name, settings, lambda seed: picture(seed, size), config)


def both(seed: int) -> Call:
    """Return two pictures and the texts to compare them with."""
    texts = text(seed)
    return {**picture(seed), **{name: each[1:] for name, each in texts.items()}}


def _towers(name: str) -> Architecture:
    settings = {"text_config": TEXT, "vision_config": PICTURE, "projection_dim": 32}
    return of_transformers("vision", name, settings, both, outputs=("image_embeds", "text_embeds"))


VISION: Final[tuple[Architecture, ...]] = (
    _seen("ViTForImageClassification"),
    _seen("DeiTForImageClassification"),
    _seen("Dinov2Model"),
    _seen(
        "SwinForImageClassification",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
    ),
    _seen(
        "ConvNextForImageClassification", {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2}, 32
    ),
    _seen("ResNetForImageClassification", {key: _RESNET[key] for key in list(_RESNET)[1:5]}, 32),
    _seen("MobileNetV2ForImageClassification", {"depth_multiplier": 0.25, "image_size": 96}, 96),
    _seen(
        "EfficientNetForImageClassification",
        {"image_size": 96, "width_coefficient": 0.25, "depth_coefficient": 0.25, "hidden_dim": 320},
        96,
    ),
    _seen(
        "SegformerForSemanticSegmentation",
        {
            "num_encoder_blocks": 2,
            "depths": [2, 2],
            "sr_ratios": [2, 1],
            "hidden_sizes": [16, 32],
            "patch_sizes": [7, 3],
            "strides": [4, 2],
            "num_attention_heads": [2, 4],
            "mlp_ratios": [2, 2],
            "decoder_hidden_size": 32,
        },
        32,
    ),
    of_transformers(
        "vision",
        "DetrForObjectDetection",
        {
            "use_timm_backbone": False,
            "use_pretrained_backbone": False,
            "backbone": None,
            "backbone_config": _RESNET,
            "d_model": 32,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "encoder_attention_heads": 4,
            "decoder_attention_heads": 4,
            "encoder_ffn_dim": 48,
            "decoder_ffn_dim": 48,
            "num_queries": 5,
            "num_labels": 3,
        },
        lambda seed: picture(seed, 32),
        outputs=("logits", "pred_boxes"),
    ),
    _towers("CLIPModel"),
    _towers("SiglipModel"),
    _seen("CLIPVisionModel", config="CLIPVisionConfig"),
    of_transformers("vision", "CLIPTextModel", TEXT, config="CLIPTextConfig"),
    _seen("SiglipVisionModel", config="SiglipVisionConfig"),
    of_transformers("vision", "SiglipTextModel", TEXT, config="SiglipTextConfig"),
)
