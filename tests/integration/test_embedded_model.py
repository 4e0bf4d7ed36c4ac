"""The main job on the embedded LLaMA: what quantization costs, and what GPTQ wins back, as ratios."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Final

import pytest
import torch
from torch import Tensor, nn

import quickstart
from language_models import WIKI_LLAMA, LanguageModel, load, logits_of, text_of
from tico.quantization import (
    GPTQConfig,
    ablation,
    calibrate,
    convert,
    load_quantized,
    perplexity,
    prepare,
    report,
    save_quantized,
)
from tico_quantizers import QuantizedLinear

# GPTQ's gain depends on the amount of text; the quickstart's --short has too little of it.
SETTINGS: Final = quickstart.settings_from([])


@pytest.fixture(scope="module")
def source() -> LanguageModel:
    """Return the embedded model."""
    return load(WIKI_LLAMA, SETTINGS.window)


@pytest.fixture(scope="module")
def calibration(source: LanguageModel) -> Tensor:
    """Return windows of text that the model was trained on."""
    return source.windows(text_of("calibration"), SETTINGS.calibration_tokens)


@pytest.fixture(scope="module")
def heldout(source: LanguageModel) -> Tensor:
    """Return windows of text that the model has never seen."""
    return source.windows(text_of("heldout"), SETTINGS.heldout_tokens // 2)


@pytest.fixture(scope="module")
def rounded(source: LanguageModel, calibration: Tensor) -> nn.Module:
    """Return the model rounded to nearest."""
    return quickstart.round_to_nearest(copy.deepcopy(source.model), calibration, SETTINGS)


@pytest.fixture(scope="module")
def solved(source: LanguageModel, calibration: Tensor) -> nn.Module:
    """Return the model rounded by GPTQ."""
    return quickstart.gptq(copy.deepcopy(source.model), calibration, SETTINGS)


@pytest.fixture(scope="module")
def complete(solved: nn.Module, calibration: Tensor) -> nn.Module:
    """Return the model after GPTQ and PTQ."""
    return quickstart.ptq(copy.deepcopy(solved), calibration, SETTINGS)


def test_model_is_small_enough_to_be_embedded() -> None:
    """The folder with weights, tokenizer and texts stays below 8 MB."""
    assert sum(path.stat().st_size for path in WIKI_LLAMA.iterdir()) <= 8_000_000


def test_gptq_wins_back_half_of_what_rounding_costs(
    source: LanguageModel, rounded: nn.Module, solved: nn.Module, heldout: Tensor
) -> None:
    """Rounding to nearest raises the perplexity by 3 % or more, GPTQ by at most half as much."""
    float_one = perplexity(source.model, heldout)
    worst, better = perplexity(rounded, heldout), perplexity(solved, heldout)
    assert worst >= 1.03 * float_one
    assert better - float_one <= (worst - float_one) / 2


def test_ptq_after_gptq_keeps_the_codes(solved: nn.Module, complete: nn.Module) -> None:
    """PTQ adds grids for activations and leaves every code of GPTQ alone, bit for bit."""
    before = {path: module for path, module in solved.named_modules() if isinstance(module, QuantizedLinear)}
    assert len(before) == 7 * len(source_layers(solved))
    for path, module in before.items():
        after = complete.get_submodule(path)
        assert isinstance(after, QuantizedLinear)
        assert torch.equal(after.packed.codes, module.packed.codes)
        assert torch.equal(after.packed.scale, module.packed.scale)
        assert after.act_in is not None


def source_layers(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks."""
    layers = model.get_submodule("model.layers")
    assert isinstance(layers, nn.ModuleList)
    return layers


def test_sixteen_bit_activations_cost_next_to_nothing(
    solved: nn.Module, complete: nn.Module, heldout: Tensor
) -> None:
    """16-bit activations and 8-bit embeddings move the perplexity by less than 1 %."""
    assert abs(perplexity(complete, heldout) / perplexity(solved, heldout) - 1) < 0.01


def test_saved_model_is_smaller_and_comes_back_bit_for_bit(
    source: LanguageModel, complete: nn.Module, heldout: Tensor, tmp_path: Path
) -> None:
    """The file is less than a fifth of the float32 parameters, and what is loaded gives the same bits."""
    file = save_quantized(complete, tmp_path)
    floats = sum(parameter.numel() * 4 for parameter in source.model.parameters())
    assert file.stat().st_size < floats / 5
    restored = load_quantized(tmp_path)
    assert torch.equal(logits_of(restored, heldout[:2]), logits_of(complete, heldout[:2]))
    assert report(restored) == report(complete)


def test_report_speaks_of_every_layer(complete: nn.Module) -> None:
    """Every module that computes is in the report, quantized or with the reason why it is float."""
    lines = json.loads(report(complete).to_json())["layers"]
    linear = [line for line in lines if line["module"] == "QuantizedLinear" or line["path"] == "lm_head"]
    assert len(linear) == 7 * len(source_layers(complete)) + 1
    assert all(line["weight"] != "float" or line["activation"] != "float" or line["reason"] for line in lines)


def test_quantized_model_still_generates(complete: nn.Module, source: LanguageModel) -> None:
    """`generate` with a cache gives the tokens that repeated full passes give."""
    prompt = source.windows(text_of("heldout"), SETTINGS.window)[:, :16]
    generate = getattr(complete, "generate")  # noqa: B009 - torch types the attribute as a tensor or module
    made = generate(prompt, max_new_tokens=8, do_sample=False, min_new_tokens=8)
    tokens = prompt
    for _ in range(8):
        tokens = torch.cat([tokens, logits_of(complete, tokens)[:, -1:].argmax(-1)], dim=1)
    assert made.tolist() == tokens.tolist()


def test_ablation_finds_a_layer_that_was_damaged(source: LanguageModel, heldout: Tensor) -> None:
    """Of a layer that rounds to 2 bits where all others have 8, block and role stand out in both tables."""
    path = "model.layers.3.mlp.up_proj"
    config = GPTQConfig(bits=8, overrides={path: {"bits": 2}}, show_progress=False)
    model = prepare(copy.deepcopy(source.model), config)
    quantized = convert(calibrate(model, [heldout[4:8]], show_progress=False))
    read = {"input_ids": heldout[:1], "use_cache": False}
    found = ablation(source.model, quantized, [read], show_progress=False)
    assert (found.worst("block").name, found.worst("role").name) == ("model.layers.3", "mlp.up_proj")
    assert found.worst("role").without < found.kl / 10
    for by in ("block", "role"):
        lines = sorted((line.alone for line in found.lines if line.by == by), reverse=True)
        assert lines[0] > 10 * lines[1]
