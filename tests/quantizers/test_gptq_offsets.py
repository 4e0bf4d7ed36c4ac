"""Offsets of groups that GPTQ has chosen, in what becomes of a model afterwards."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import attrs
import pytest
import torch
from torch import nn

from fused_models import fused_model, token_ids
from graph_models import quantized
from tico.quantization import GPTQConfig, PT2EConfig, PTQConfig, convert, prepare
from tico_config import DType, SuperBlock, affine, no_quant
from tico_modules import PackedWeight, QuantizedLinear, load_quantized, named_modules, save_quantized
from tico_quantizers.testing import same_tensors, tensors_of
from tiny_models import logits, values

CONFIG = GPTQConfig(
    group_size=8,
    ragged_groups=True,
    super_block=SuperBlock(columns=16, offset_bits=6),
    min_expert_tokens=1,
    show_progress=False,
)


def _stack() -> nn.Module:
    """Return two layers by GPTQ with offsets."""
    model = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 8)).eval()
    for number, each in enumerate(model.parameters()):
        each.data = values(number, *each.shape)
    prepare(model, CONFIG)(values(9, 64, 32))
    return convert(model)


def test_activations_are_quantized_beside_them() -> None:
    """PTQ keeps the codes with their scales and offsets, and the layer computes by them."""
    model, x = _stack(), values(8, 20, 32)
    before = {
        path: each.dequantize() for path, each in named_modules(model) if isinstance(each, PackedWeight)
    }
    prepare(model, PTQConfig(activation=affine(DType.uint(8)), weight=affine(DType.uint(8))))(x)
    done = convert(model)
    after = [each for _, each in named_modules(done) if isinstance(each, PackedWeight)]
    assert len(after) == len(before) == 2
    assert all(each.offset is not None for each in after)
    assert all(
        torch.equal(each.dequantize(), kept) for each, kept in zip(after, before.values(), strict=True)
    )


def test_experts_have_them_and_come_back(tmp_path: Path) -> None:
    """Each expert in a parameter that holds one for each, also where 16 does not divide its columns."""
    model = fused_model("mixtral")
    batch: Mapping[str, torch.Tensor] = {"input_ids": token_ids()}
    prepare(model, CONFIG)
    with torch.no_grad():
        model(**batch)
    done = convert(model)
    experts = [
        each for path, each in named_modules(done) if isinstance(each, PackedWeight) and ".experts." in path
    ]
    assert experts
    assert all(each.offset is not None and bool(each.offset.any()) for each in experts)
    save_quantized(done, tmp_path / "m")
    again = load_quantized(tmp_path / "m", fused_model("mixtral"))
    assert same_tensors(tensors_of(again), tensors_of(done))
    assert torch.equal(logits(again), logits(done))


@pytest.mark.parametrize("order", [False, True])
def test_graphs_subtract_them(order: bool) -> None:
    """A graph whose weights GPTQ has rounded computes with the values of its solution."""
    model, x = nn.Sequential(nn.Linear(32, 16, bias=False)).eval(), values(4, 64, 32)
    model[0].weight.data = values(3, 16, 32)
    config = attrs.evolve(CONFIG, act_order=order, static_groups=not order)
    layer = prepare(model, config, inplace=False)
    layer(x)
    made = convert(layer).get_submodule("0")
    graph = prepare(quantized(model, PT2EConfig(activation=no_quant(), weight=no_quant()), x), config)
    graph(x)
    done = convert(graph)
    assert isinstance(made, QuantizedLinear)
    assert made.packed.offset is not None
    assert any("offset" in name for name, _ in done.named_buffers())
    assert torch.equal(done(x), nn.functional.linear(x, made.dequantize()))
