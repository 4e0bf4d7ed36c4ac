"""`CompressedTensors()`: a trained LLaMA as vLLM runs it on a processor, in bfloat16."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn

import language_models as language
import vllm_log_probabilities as program
from tico_config import FP8, DType
from tico_export import CompressedTensors, export
from tico_modules import ActivationGrid, QuantizedLinear
from tico_observers import AffineParams

pytest.importorskip("vllm", reason="nox -s 'runtimes(vllm)' installs it")

program.hide_cuda_builds()

Quantize = Callable[[str, nn.Linear], QuantizedLinear]
# What bfloat16 does to one order of sums it does to another, up to a fifth.
SHARE: Final = 1.2


def packed(*, signed: bool) -> Quantize:
    """Return what makes weights of 4 bits in groups of 64 columns; unsigned ones have zero points."""
    dtype = DType(4, signed)
    return lambda _, layer: QuantizedLinear.from_float(layer, dtype, symmetric=signed, group_size=64)


def of_fp8(_: str, layer: nn.Linear) -> QuantizedLinear:
    """Return a layer with weights and inputs of FP8, with a scale a row and a token."""
    made = QuantizedLinear.from_float(layer, FP8(), symmetric=True)
    made.act_in = ActivationGrid.per_token(FP8(), symmetric=True)
    return made


def with_inputs(grid: Callable[[], ActivationGrid]) -> Quantize:
    """Return what makes weights of 8 bits, with inputs on `grid`."""

    def quantize(_: str, layer: nn.Linear) -> QuantizedLinear:
        made = QuantizedLinear.from_float(layer, DType.int(8), symmetric=True)
        made.act_in = grid()
        return made

    return quantize


def per_token() -> ActivationGrid:
    """Return grids of int8 for each token."""
    return ActivationGrid.per_token(DType.int(8), symmetric=True)


def fixed() -> ActivationGrid:
    """Return a grid of uint8 with a zero point, wide enough for what enters the layers."""
    scale, point = torch.tensor(0.06), torch.tensor(120, dtype=torch.int32)
    return ActivationGrid.static(AffineParams(scale=scale, zero_point=point, dtype=DType.uint(8)))


def mixed(path: str, layer: nn.Linear) -> QuantizedLinear:
    """Return 8-bit layers for attention, weights of 4 bits for the rest."""
    chosen = with_inputs(per_token) if "self_attn" in path else packed(signed=True)
    return chosen(path, layer)


SCHEMES: Final[dict[str, Quantize]] = {
    "W4A16 group 64": packed(signed=True),
    "W4A16 group 64, zero points": packed(signed=False),
    "W8A8 per token": with_inputs(per_token),
    "W8A8 fixed, zero points": with_inputs(fixed),
    "mixed": mixed,
    "FP8 per token": of_fp8,
}


def quantized(quantize: Quantize) -> nn.Module:
    """Return the embedded LLaMA with its layers quantized, the head left out."""
    model = language.load(language.WIKI_LLAMA, 128).model
    for path, layer in list(model.named_modules()):
        if isinstance(layer, nn.Linear) and path != "lm_head":
            model.set_submodule(path, quantize(path, layer))
    return model.eval()


def given_by_transformers(model: nn.Module, tokens: Tensor) -> Tensor:
    """Return the log probability of each token but the first of its row."""
    logits = language.logits_of(model, tokens)[:, :-1].float()
    return logits.log_softmax(-1).gather(-1, tokens[:, 1:, None]).squeeze(-1)


def given_by_vllm(folder: Path, tokens: Tensor) -> Tensor:
    """Return the same by vLLM, in a process of its own."""
    asked, told = folder.with_name("tokens.json"), folder.with_name("found.json")
    asked.write_text(json.dumps(tokens.tolist()))
    command = [sys.executable, program.__file__, str(folder), str(asked), str(told)]
    subprocess.run(command, check=True)
    return torch.tensor(json.loads(told.read_text()))


@pytest.mark.parametrize("name", SCHEMES)
def test_vllm_gives_what_bfloat16_allows(name: str, tmp_path: Path) -> None:
    """Its log probabilities are as near to the model's in float32 as those of the model in bfloat16."""
    loaded = language.load(language.WIKI_LLAMA, 128)
    tokens = loaded.windows(language.text_of("heldout"), 2048)
    model = quantized(SCHEMES[name])
    export(model, tmp_path / "m", CompressedTensors(), verify=False)
    expected = given_by_transformers(model, tokens)
    own = (given_by_transformers(model.to(torch.bfloat16), tokens) - expected).abs().mean().item()
    difference = (given_by_vllm(tmp_path / "m", tokens) - expected).abs().mean().item()
    print(f"{name}: {difference:.4f}, bfloat16 itself {own:.4f}")  # noqa: T201  # for the record
    assert difference < SHARE * own
