"""A sentence-transformers model with a converted encoder is saved, loaded and called."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.models import Pooling, Transformer
from torch import Tensor, nn
from transformers import BertConfig, BertModel

from client_models import CONFIGS, VOCABULARY
from client_tokenizer import word_tokenizer
from references import same_bits
from tico.quantization import convert, prepare

CLIENT = "sentence-transformers"
SENTENCES = ["w5 w9 w11 w20", "w6 w7", "w30 w31 w32 w33 w34 w35"]
ENCODERS = ("GPTQ", "PTQ")


def _encoder(folder: Path) -> SentenceTransformer:
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
    )
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    transformer = Transformer(str(folder))
    return SentenceTransformer(modules=[transformer, Pooling(64)], device="cpu").eval()


def _embed(model: SentenceTransformer) -> Tensor:
    embeddings: Tensor = model.encode(SENTENCES, convert_to_tensor=True, batch_size=3)
    return embeddings


def _convert(model: SentenceTransformer, kind: str) -> None:
    for config in CONFIGS[kind]:
        inside: nn.Module = model[0].auto_model
        prepare(inside, config)
        for _ in range(2):
            _embed(model)
        convert(inside)


@pytest.mark.parametrize("kind", ENCODERS)
def test_saved_and_loaded(kind: str, tmp_path: Path) -> None:
    """The embeddings keep their bits."""
    for name in ("float", "converted"):
        model = _encoder(tmp_path / f"{name} encoder")
        if name == "converted":
            _convert(model, kind)
        expected = _embed(model)
        model.save(str(tmp_path / name))
        loaded = SentenceTransformer(str(tmp_path / name), device="cpu")
        assert same_bits(_embed(loaded), expected)
