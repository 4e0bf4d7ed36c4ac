"""WrapQ on a LLaMA: generation, padding, tied embeddings, saving, several precisions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LlamaForCausalLM

from tico.quantization import PTQConfig, convert, load_quantized, prepare, report, save_quantized
from tico.quantization.config import DType, affine, no_quant
from tico_quantizers import QuantizedEmbedding, QuantizedLinear
from tico_quantizers.testing import modules_by_path
from tico_wrapq import QuantLlamaMLP, QuantUnary
from tiny_models import TOKENS, logits, tiny_llama

PROMPT = TOKENS[:, :5]


def _generated(model: nn.Module, *, use_cache: bool = True) -> Tensor:
    assert isinstance(model, LlamaForCausalLM)
    settings = GenerationConfig(  # type: ignore[no-untyped-call]  # transformers leaves it untyped
        max_new_tokens=6, min_new_tokens=6, do_sample=False, pad_token_id=0, use_cache=use_cache
    )
    found = model.generate(PROMPT, settings)  # type: ignore[misc]  # the mixin wants a type it does not name
    assert isinstance(found, Tensor)
    return found


def _converted(config: PTQConfig | None = None, *, tied: bool = False) -> nn.Module:
    prepared = prepare(tiny_llama(tied=tied), config or PTQConfig())
    prepared(TOKENS)
    return convert(prepared)


def test_prepared_model_generates_what_the_float_model_does() -> None:
    """Watching changes no token, and generated text is calibration data."""
    expected = _generated(tiny_llama())
    prepared = prepare(tiny_llama(), PTQConfig())
    assert torch.equal(_generated(prepared), expected)
    assert isinstance(modules_by_path(convert(prepared))["lm_head"], QuantizedLinear)


def test_cache_changes_no_token_of_the_quantized_model() -> None:
    """Generation with the cache and without it agree."""
    converted = _converted()
    assert torch.equal(_generated(converted, use_cache=True), _generated(converted, use_cache=False))


def test_left_padded_batch_is_quantized_like_an_unpadded_one() -> None:
    """Padding before a text changes its logits by rounding only."""
    pad = torch.zeros(2, 4, dtype=torch.long)
    padded, mask = torch.cat([pad, TOKENS], 1), torch.cat([pad, torch.ones_like(TOKENS)], 1)
    prepared = prepare(tiny_llama(), PTQConfig())
    prepared(padded, attention_mask=mask)
    prepared(TOKENS)
    converted = convert(prepared)
    assert isinstance(converted, LlamaForCausalLM)
    with_padding: Tensor = converted(padded, attention_mask=mask).logits[:, 4:]
    assert (with_padding - logits(converted)).abs().max() < 0.05 * logits(converted).abs().max()


def test_every_module_that_computes_is_quantized() -> None:
    """What stands where: integer layers, and wrappers for what has no weight to make integer."""
    found = modules_by_path(_converted())
    expected = {
        "model.embed_tokens": QuantizedEmbedding,
        "lm_head": QuantizedLinear,
        "model.norm": QuantUnary,
        "model.layers.0.input_layernorm": QuantUnary,
        "model.layers.1.mlp": QuantLlamaMLP,
        "model.layers.1.mlp.act_fn": QuantUnary,
        "model.layers.1.mlp.down_proj": QuantizedLinear,
        "model.layers.1.self_attn.k_proj": QuantizedLinear,
    }
    assert {path: type(found[path]) for path in expected} == expected


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_saved_model_is_loaded_bit_for_bit(tied: bool, tmp_path: Path) -> None:
    """From its folder alone: integer layers, norms and activations in their wrappers, and the report."""
    converted = _converted(tied=tied)
    save_quantized(converted, tmp_path)
    loaded = load_quantized(tmp_path)
    assert torch.equal(logits(loaded), logits(converted))
    assert report(loaded) == report(converted)
    kinds = {path: type(module) for path, module in modules_by_path(converted).items()}
    assert {path: type(module) for path, module in modules_by_path(loaded).items()} == kinds
    tensors = dict(loaded.named_buffers(remove_duplicate=False))
    codes = {tensors[f"{path}.packed.codes"].data_ptr() for path in ("lm_head", "model.embed_tokens")}
    assert (len(codes) == 1) == tied


def test_loaded_model_is_calibrated_again(tmp_path: Path) -> None:
    """A model that was loaded goes on like one that was just converted."""
    save_quantized(_converted(), tmp_path)
    again = prepare(load_quantized(tmp_path), PTQConfig(activation=affine(DType.int(16))))
    again(TOKENS)
    found = modules_by_path(convert(again))
    norm, projection = found["model.norm"], found["lm_head"]
    assert isinstance(norm, QuantUnary)
    assert isinstance(projection, QuantizedLinear)
    assert projection.act_in is not None
    assert norm.point("act_in").fixed is not None
    assert projection.act_in.dtype == DType.int(16)
    assert norm.point("act_in").label == "int16 static"
    inner = found["model.layers.0.mlp.down_proj"]
    assert isinstance(inner, QuantizedLinear)
    assert inner.act_in is not None
    assert inner.act_in.dtype == DType.int(16)
    product = found["model.layers.0.mlp"]
    assert isinstance(product, QuantLlamaMLP)
    assert product.point("product").label == "int16 static"


def test_sixteen_bits_are_nearer_than_eight_and_four() -> None:
    """More bits, less error: the whole chain follows the config."""
    expected = logits(tiny_llama())
    errors = []
    for bits in (4, 8, 16):
        spec = affine(DType.int(bits))
        found = logits(_converted(PTQConfig(activation=spec, weight=spec)))
        errors.append((found - expected).abs().max().item())
    assert errors[0] > 4 * errors[1] > 64 * errors[2]


def test_rule_reaches_one_point_of_one_layer() -> None:
    """The product of one MLP can be kept in float, the others not."""
    point = "model.layers.0.mlp.product"
    found = modules_by_path(_converted(PTQConfig(overrides={point: no_quant()})))
    kept, other = found["model.layers.0.mlp"], found["model.layers.1.mlp"]
    assert isinstance(other, QuantLlamaMLP)
    assert other.point("product").fixed is not None
    assert type(kept).__name__ == "LlamaMLP"
