"""The exporters of this package keep what every exporter promises."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import ClassVar

import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from tico_config import FP8, INT4, INT8, MXFP4, NumberFormat
from tico_export import GGUF, PT2, AWQFormat, CompressedTensors, GPTQFormat, Onnx
from tico_export.testing import ExporterCase, ExporterPromises
from tico_modules import QuantizedLinear

TOKENS = torch.arange(8).view(1, 8)


def layers(dtype: NumberFormat = INT8) -> nn.Module:
    """Return two quantized layers, the same ones in every process."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        first, last = nn.Linear(32, 16), nn.Linear(16, 8)
    made = [QuantizedLinear.from_float(each, dtype) for each in (first, last)]
    return nn.Sequential(made[0], nn.ReLU(), made[1]).eval()


def language_model(dtype: NumberFormat = INT4) -> nn.Module:
    """Return a LLaMA with weights in its blocks in groups of 32, the same one in every process."""
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=32,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model: nn.Module = LlamaForCausalLM(config)
    for path, each in list(model.named_modules()):
        if isinstance(each, nn.Linear) and path != "lm_head":
            made = QuantizedLinear.from_float(each, dtype, symmetric=True, group_size=32)
            model.set_submodule(path, made)
    return model.eval()


class TestGraphs(ExporterPromises):
    """Programs and files of ONNX; for ExecuTorch and OpenVINO, see tests/runtimes."""

    cases: ClassVar[Mapping[str, ExporterCase]] = {
        "PT2": ExporterCase(target=PT2(), make=layers, args=(torch.ones(2, 32),), file_name="m.pt2"),
        "Onnx": ExporterCase(target=Onnx(), make=layers, args=(torch.ones(2, 32),)),
        "Onnx FP8": ExporterCase(target=Onnx(), make=partial(layers, FP8()), args=(torch.ones(2, 32),)),
    }


class TestCheckpoints(ExporterPromises):
    """Folders and files of language models."""

    cases: ClassVar[Mapping[str, ExporterCase]] = {
        "AWQFormat": ExporterCase(target=AWQFormat(), make=language_model, args=(TOKENS,)),
        "CompressedTensors": ExporterCase(target=CompressedTensors(), make=language_model, args=(TOKENS,)),
        "CompressedTensors FP8": ExporterCase(
            target=CompressedTensors(), make=partial(language_model, FP8()), args=(TOKENS,)
        ),
        "GGUF": ExporterCase(target=GGUF(tokenizer=False), make=language_model, args=(TOKENS,)),
        "GGUF MXFP4": ExporterCase(
            target=GGUF(tokenizer=False), make=partial(language_model, MXFP4()), args=(TOKENS,)
        ),
        "GPTQFormat": ExporterCase(target=GPTQFormat(), make=language_model, args=(TOKENS,)),
    }
