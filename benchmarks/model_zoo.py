"""What each algorithm makes of many architectures: right, refused with a reason, or worse.

Every architecture is a tiny random model of transformers' own classes. A cell is the signal-to-noise ratio
of the converted model's output in dB (`ok` where the function is kept exactly but for rounding), a refusal
with the error's first sentence below the table, or an error of another library, which is a fault.

    python benchmarks/model_zoo.py [--only NAME …] [--columns NAME …] [--result FILE]
"""

from __future__ import annotations

import argparse
import logging
import warnings
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import torch
import transformers
from torch import Tensor, nn

import recorded
from tico.quantization import (
    AWQConfig,
    GPTQConfig,
    PTQConfig,
    SmoothQuantConfig,
    convert,
    prepare,
)
from tico.quantization.config import DType, affine
from tico_config import BaseConfig, TicoError
from tico_quantizers.testing import seeded

Settings = Mapping[str, object]

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
EXPERTS: Final[Settings] = {**GROUPED, "num_experts_per_tok": 2, "moe_intermediate_size": 24}
PICTURE: Final[Settings] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 16,
    "patch_size": 4,
}
SEQUENCES: Final[Settings] = {
    "vocab_size": 40,
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "pad_token_id": 0,
    "decoder_start_token_id": 0,
}
LINEAR: Final[Settings] = {
    "linear_num_value_heads": 2,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
MAMBA: Final[Settings] = {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
DELTA: Final[Settings] = {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "mamba_d_state": 8}


def text(seed: int) -> Mapping[str, Tensor]:
    """Return tokens, two of three samples padded on the left."""
    tokens = torch.randint(3, 40, (3, 12), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(tokens)
    mask[0, :4] = mask[1, :2] = 0
    return {"input_ids": tokens * mask, "attention_mask": mask}


def both_texts(seed: int) -> Mapping[str, Tensor]:
    """Return the tokens of an encoder and of a decoder."""
    return {**text(seed), "decoder_input_ids": text(seed + 1)["input_ids"][:, 3:]}


def picture(seed: int, size: int = 16) -> Mapping[str, Tensor]:
    """Return two pictures."""
    return {"pixel_values": torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(seed))}


def speech(seed: int) -> Mapping[str, Tensor]:
    """Return features of speech and tokens."""
    features = torch.randn(2, 8, 32, generator=torch.Generator().manual_seed(seed))
    return {"input_features": features, "decoder_input_ids": text(seed)["input_ids"][:2]}


@attrs.frozen
class Architecture:
    """A model of transformers, by the names of its classes, and the data that it takes."""

    model: str
    settings: Settings
    call: Callable[[int], Mapping[str, Tensor]] = text
    config: str = ""

    def make(self) -> nn.Module:
        """Return the model, with weights that are larger than those it begins with."""
        name = self.config or f"{_family(self.model)}Config"
        model: nn.Module = getattr(transformers, self.model)(getattr(transformers, name)(**self.settings))
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.ndim > 1:
                    parameter.mul_(3)
        return model


def _family(model: str) -> str:
    tasks = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration", "ForImageClassification")
    for task in (*tasks, "ForMaskedLM", "EncoderModel", "ForSemanticSegmentation", "Model"):
        if model.endswith(task):
            return model.removesuffix(task)
    return model


def causal(family: str, settings: Settings = GROUPED, **more: object) -> Architecture:
    """Return a language model."""
    return Architecture(f"{family}ForCausalLM", {**settings, **more})


ARCHITECTURES: Final[tuple[Architecture, ...]] = (
    *(causal(name) for name in ("Llama", "Mistral", "Qwen2", "Qwen3", "SmolLM3", "Gemma", "Gemma2")),
    Architecture(
        "Gemma3ForCausalLM",
        {**GROUPED, "layer_types": ["sliding_attention", "full_attention"]},
        config="Gemma3TextConfig",
    ),
    *(causal(name, TEXT) for name in ("Phi", "Phi3", "Cohere", "Olmo2", "Granite", "GPTNeoX")),
    causal("Glm4"),
    causal("StableLm", TEXT, num_key_value_heads=4),
    Architecture("GPT2LMHeadModel", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    causal("GPTJ", {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4}),
    causal("OPT", {**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 1}),
    causal("Bloom", {"vocab_size": 40, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    causal("Falcon", {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}),
    causal("Mpt", {"vocab_size": 40, "d_model": 32, "n_layers": 2, "n_heads": 4}),
    causal("Mixtral", num_local_experts=4),
    causal("Qwen2Moe", EXPERTS, num_experts=4, shared_expert_intermediate_size=24),
    causal("Qwen3Moe", EXPERTS, num_experts=4),
    causal("GptOss", num_local_experts=4, num_experts_per_tok=2),
    causal("GraniteMoe", TEXT, num_local_experts=4, num_experts_per_tok=2),
    causal("Qwen3Next", EXPERTS, num_experts=4, shared_expert_intermediate_size=24, **LINEAR),
    causal("Mamba", MAMBA),
    causal("Mamba2", MAMBA, num_heads=8, head_dim=8, n_groups=2),
    causal("Rwkv", MAMBA, attention_hidden_size=32),
    causal("Jamba", GROUPED, num_experts=2, mamba_d_state=4, attn_layer_period=2, attn_layer_offset=1),
    causal("RecurrentGemma", {**GROUPED, "lru_width": 32, "num_hidden_layers": 3}),
    causal("Lfm2", GROUPED, layer_types=["conv", "full_attention"]),
    causal("FalconH1", {**GROUPED, **DELTA}),
    causal("Bamba", {**GROUPED, **DELTA, "mamba_expand": 1, "attn_layer_indices": [1]}),
    *(Architecture(f"{name}ForMaskedLM", TEXT) for name in ("Bert", "Roberta", "ModernBert")),
    Architecture(
        "DistilBertForMaskedLM", {"vocab_size": 40, "dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4}
    ),
    Architecture(
        "T5ForConditionalGeneration",
        {
            "vocab_size": 40,
            "d_model": 32,
            "d_kv": 8,
            "d_ff": 48,
            "num_layers": 2,
            "num_heads": 4,
            "decoder_start_token_id": 0,
        },
        both_texts,
    ),
    Architecture("BartForConditionalGeneration", SEQUENCES, both_texts),
    Architecture(
        "WhisperForConditionalGeneration",
        {**SEQUENCES, "num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16},
        speech,
    ),
    Architecture("ViTForImageClassification", PICTURE, picture),
    Architecture("Dinov2Model", PICTURE, picture),
    Architecture(
        "SwinForImageClassification",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 16,
            "depths": [2, 2],
            "num_heads": [2, 4],
            "window_size": 4,
        },
        picture,
    ),
    Architecture(
        "ConvNextForImageClassification",
        {"hidden_sizes": [16, 32], "depths": [2, 2], "num_stages": 2},
        picture,
    ),
    Architecture(
        "ResNetForImageClassification",
        {"embedding_size": 16, "hidden_sizes": [16, 32], "depths": [2, 2], "layer_type": "basic"},
        picture,
    ),
    Architecture(
        "MobileNetV2ForImageClassification",
        {"depth_multiplier": 0.25, "image_size": 32},
        lambda seed: picture(seed, 32),
    ),
    Architecture("CLIPVisionModel", PICTURE, picture, "CLIPVisionConfig"),
    Architecture("SiglipVisionModel", PICTURE, picture, "SiglipVisionConfig"),
)

COLUMNS: Final[Mapping[str, BaseConfig]] = {
    "GPTQ W8": GPTQConfig(bits=8, show_progress=False),
    "AWQ W8": AWQConfig(bits=8, group_size=None, show_progress=False),
    "SmoothQuant": SmoothQuantConfig(),
    "PTQ W8A16": PTQConfig(activation=affine(DType.int(16)), strict_wrap=False, on_uncalibrated="skip"),
    "PTQ steps": PTQConfig(
        activation=affine(DType.int(16)), strict_wrap=False, on_uncalibrated="skip", steps="auto"
    ),
    "PTQ strict": PTQConfig(activation=affine(DType.int(16))),
}
EXACT: Final = 80.0
"""Above this many dB only the rounding of float32 is left."""


def output_of(model: nn.Module, call: Mapping[str, Tensor]) -> Tensor:
    """Return what `model` gives for `call`, what padding gives left out."""
    with torch.no_grad():
        found = model(**call)
    first: Tensor = found[0]
    mask = call.get("attention_mask")
    alike = mask is not None and first.shape[:2] == mask.shape
    return first[mask.bool()] if alike and mask is not None else first


def cell(architecture: Architecture, config: BaseConfig, notes: list[str], name: str) -> str:
    """Return what comes of preparing, calibrating and converting a model."""
    model = seeded(architecture.make)
    expected = output_of(model, architecture.call(1))
    try:
        prepared = prepare(model, config, kwargs=architecture.call(0))
        for seed in (0, 1):
            output_of(prepared, architecture.call(seed))
        found = output_of(convert(prepared), architecture.call(1))
    except TicoError as error:
        notes.append(f"{architecture.model}, {name}: {' '.join(str(error).splitlines()[:2])[:200]}")
        return "refused"
    except Exception as error:  # noqa: BLE001  # a fault, which the table is there to show
        notes.append(f"{architecture.model}, {name}: FAULT {type(error).__name__}: {str(error)[:200]}")
        return "FAULT"
    noise = (found - expected).square().mean()
    decibels = float(10 * torch.log10(expected.square().mean() / noise)) if bool(noise) else float("inf")
    return "ok" if decibels > EXACT else f"{decibels:.0f} dB"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of architectures")
    parser.add_argument("--columns", nargs="*", default=list(COLUMNS), choices=list(COLUMNS))
    recorded.add_option(parser)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.getLogger("tico_quantizers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    with recorded.recording(options.result) as out:
        chosen = [
            one
            for one in ARCHITECTURES
            if not options.only or any(part in one.model for part in options.only)
        ]
        notes: list[str] = []
        out.table("Architectures", *options.columns, width=36)
        for one in chosen:
            out.row(one.model, *(cell(one, COLUMNS[name], notes, name) for name in options.columns))
        for note in notes:
            out.note(note)


if __name__ == "__main__":
    main()
