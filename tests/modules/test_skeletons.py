"""A saved model of any class of transformers is loaded from its folder alone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    CLIPConfig,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaForCausalLM,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from artifact_folder import rewrite
from references import same_bits
from tico.quantization import GPTQConfig, convert, prepare
from tico_config import ArtifactError
from tico_modules import load_quantized, save_quantized
from tiny_models import TOKENS, tiny_llama, values

GPTQ = GPTQConfig(show_progress=False)
SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
VISION = {**SMALL, "image_size": 8, "patch_size": 4}
TEXT = {**SMALL, "vocab_size": 40, "eos_token_id": 39}
IMAGES = {"pixel_values": values(0, 2, 3, 8, 8)}


def _clip() -> CLIPModel:
    config = {"text_config": TEXT, "vision_config": VISION, "projection_dim": 8}
    return CLIPModel(CLIPConfig.from_dict(config))


def _t5() -> T5ForConditionalGeneration:
    config = T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    return T5ForConditionalGeneration(config)


def _whisper() -> WhisperForConditionalGeneration:
    widths = {"d_model": 16, "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "num_mel_bins": 8}
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    layers = {"encoder_layers": 1, "decoder_layers": 1, "max_source_positions": 12}
    ids = {
        "vocab_size": 40,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    return WhisperForConditionalGeneration(WhisperConfig.from_dict({**widths, **heads, **layers, **ids}))


MODELS: dict[str, tuple[Callable[[], PreTrainedModel], dict[str, Tensor]]] = {
    "encoder": (
        lambda: BertForSequenceClassification(BertConfig.from_dict({**SMALL, "vocab_size": 40})),
        {"input_ids": TOKENS},
    ),
    "vision": (lambda: ViTForImageClassification(ViTConfig.from_dict(VISION)), IMAGES),
    "part of a vision-language model": (lambda: CLIPVisionModel(CLIPVisionConfig.from_dict(VISION)), IMAGES),
    "vision-language": (_clip, {**IMAGES, "input_ids": TOKENS}),
    "encoder and decoder": (_t5, {"input_ids": TOKENS, "decoder_input_ids": TOKENS[:, :4]}),
    "speech": (_whisper, {"input_features": values(1, 2, 8, 24), "decoder_input_ids": TOKENS[:, :4]}),
    "base model": (lambda: tiny_llama().model, {"input_ids": TOKENS}),
}


def _saved(name: str, folder: Path) -> nn.Module:
    make, inputs = MODELS[name]
    model = make()
    nn.Module.eval(model)
    prepared = prepare(model, GPTQ)
    prepared(**inputs)
    converted = convert(prepared)
    save_quantized(converted, folder)
    return converted


def _first(output: object) -> Tensor:
    first: Tensor = output[0]  # type: ignore[index]
    return first


@pytest.mark.parametrize("name", MODELS)
def test_model_comes_back_from_its_folder(name: str, tmp_path: Path) -> None:
    """With the class that was saved, and the same bits; the card names the call."""
    model = _saved(name, tmp_path)
    loaded = load_quantized(tmp_path)
    assert type(loaded) is type(model)
    inputs = MODELS[name][1]
    with torch.no_grad():
        assert same_bits(_first(loaded(**inputs)), _first(model(**inputs)))
    assert "model = load_quantized(folder)\n" in (tmp_path / "README.md").read_text()


class OwnLlama(LlamaForCausalLM):  # type: ignore[no-untyped-call]  # its base leaves a hook untyped
    """A class that transformers does not have."""


def test_class_of_ones_own_has_to_be_given(tmp_path: Path) -> None:
    """The card and the error say so, and no class of the same name is taken for it."""
    for name in ("OwnLlama", "LlamaForCausalLM"):
        model = tiny_llama()
        model.__class__ = type(name, (OwnLlama,), {"__module__": __name__})
        prepared = prepare(model, GPTQ)
        prepared(TOKENS)
        save_quantized(convert(prepared), tmp_path)
        assert "model = load_quantized(folder, model)\n" in (tmp_path / "README.md").read_text()
        with pytest.raises(ArtifactError, match=f"pass a float {name} as model") as caught:
            load_quantized(tmp_path)
        assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("transformers", "architecture"), "NoSuchModel"),
        (("transformers", "architecture"), "AutoModel"),
        (("transformers", "config", "num_attention_heads"), 5),
        (("transformers", "config", "hidden_act"), "no such function"),
        (("transformers", "config", "hidden_size"), "wide"),
    ],
)
def test_error_about_a_config_is_short(place: tuple[str, ...], value: object, tmp_path: Path) -> None:
    """One sentence with what to do, whatever transformers has to say."""
    _saved("encoder", tmp_path)
    rewrite(tmp_path, place, value)
    with pytest.raises(ArtifactError, match="pass a float") as caught:
        load_quantized(tmp_path)
    assert len(str(caught.value)) < 600
