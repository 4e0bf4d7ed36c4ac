"""A model of integer layers has a parameter to ask for its dtype and device."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from transformers import BertConfig, BertModel, PreTrainedModel

from references import same_bits
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_config import DType
from tico_modules import PackedWeight, QuantizedLinear, load_quantized, save_quantized
from tiny_models import TOKENS, logits, tiny_llama


def _llama(dtype: torch.dtype, config: GPTQConfig | PTQConfig) -> PreTrainedModel:
    model: nn.Module = tiny_llama()
    prepared = prepare(model.to(dtype), config)
    logits(prepared)
    converted = convert(prepared)
    assert isinstance(converted, PreTrainedModel)
    return converted


CONFIGS = [PTQConfig(strict_wrap=False), GPTQConfig(show_progress=False)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", CONFIGS, ids=["PTQ", "GPTQ"])
def test_language_model_knows_dtype_and_device(
    config: GPTQConfig | PTQConfig, dtype: torch.dtype, tmp_path: object
) -> None:
    """Without biases too, as a whole and in each of its parts; `generate` asks for both."""
    model = _llama(dtype, config)
    save_quantized(model, str(tmp_path))
    loaded = load_quantized(str(tmp_path))
    assert isinstance(loaded, PreTrainedModel)
    for each in (model, loaded):
        assert (each.dtype, each.device) == (dtype, torch.device("cpu"))
        for layer in each.modules():
            if list(layer.buffers()) and any(isinstance(part, PackedWeight) for part in layer.modules()):
                assert next(layer.parameters()).dtype == dtype
        tokens: Tensor = each.generate(TOKENS[:1], max_new_tokens=2, do_sample=False)  # type: ignore[operator]
        assert tokens.shape[1] == TOKENS.shape[1] + 2


def test_encoder_moves_its_inputs_to_its_device() -> None:
    """As transformers' own examples do."""
    config = BertConfig(
        vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24
    )
    model: nn.Module = BertModel(config)
    prepared = prepare(model.eval(), PTQConfig(strict_wrap=False))
    prepared(TOKENS)
    converted = convert(prepared)
    assert isinstance(converted, PreTrainedModel)
    assert converted(TOKENS.to(converted.device)).last_hidden_state.dtype == converted.dtype


def test_data_parallel_takes_it() -> None:
    """It looks for parameters first."""
    layer = QuantizedLinear.from_float(nn.Linear(4, 3), DType.uint(4))
    x = torch.randn(2, 4)
    assert same_bits(nn.DataParallel(layer)(x), layer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_cast_model_answers_with_the_new_dtype(dtype: torch.dtype) -> None:
    """Scales stay exact, codes stay codes; casting back changes nothing."""
    layer = QuantizedLinear.from_float(nn.Linear(8, 4, bias=False), DType.int(4), group_size=4)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    for wanted in (dtype, torch.float32):
        layer.to(wanted)
        assert {parameter.dtype for parameter in layer.parameters()} == {wanted}
        assert layer.weight.dtype == wanted
        assert all(same_bits(buffer, before[name]) for name, buffer in layer.named_buffers())


def test_nothing_of_it_is_trained() -> None:
    """The parameters are empty and need no gradient: counts and optimizers see what they saw."""
    layer = QuantizedLinear.from_float(nn.Linear(8, 4), DType.int(4))
    assert [(parameter.numel(), parameter.requires_grad) for parameter in layer.parameters()] == [(0, False)]
