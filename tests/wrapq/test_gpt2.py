"""GPT-2, whose linear layers have a transposed weight."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel
from transformers.pytorch_utils import Conv1D

from tico.quantization import PTQConfig, convert, coverage, load_quantized, prepare, save_quantized
from tico.quantization.config import DType, PerGroup, QuantSpec, affine, no_quant
from tico_quantizers import QuantizedLinear
from tico_quantizers.testing import same_tensors, tensors_of
from tico_wrapq import QuantTransposedLinear
from tiny_models import values

TOKENS = torch.arange(24).view(2, 12)
SPECS = [
    PTQConfig().weight,
    affine(DType.int(4)),
    affine(DType.uint(4), granularity=PerGroup(1, 3)),
    no_quant(),
]


def _gpt2() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = GPT2Config(vocab_size=40, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        config._attn_implementation = "eager"
        model: nn.Module = GPT2LMHeadModel(config)
        return model.train(False)


def _transposed(kind: Callable[[int, int], nn.Module], outputs: int, inputs: int) -> nn.Module:
    """Return a layer of transformers, whose classes have no types."""
    return kind(outputs, inputs)


def _pair() -> tuple[nn.Module, nn.Module]:
    """Return a transposed layer of 6 inputs and 5 outputs, and the linear layer that it equals."""
    torch.manual_seed(0)
    transposed, linear = _transposed(Conv1D, 5, 6), nn.Linear(6, 5)
    weight, bias = (transposed.get_parameter(name) for name in ("weight", "bias"))
    nn.init.normal_(bias)
    with torch.no_grad():
        linear.weight.copy_(weight.T)
        linear.bias.copy_(bias)
    return nn.Sequential(transposed).eval(), nn.Sequential(linear).eval()


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_it_is_a_linear_layer_with_another_layout(spec: QuantSpec) -> None:
    """The same codes, grids and multiply-accumulates as the linear layer has, and so the same module."""
    made = []
    for model in _pair():
        prepare(model, PTQConfig(weight=spec))
        model(values(0, 3, 4, 6))
        made.append(convert(model))
    transposed, linear = made
    if spec.is_quantized:
        assert all(type(model.get_submodule("0")) is QuantizedLinear for model in made)
        codes = [tensors_of(model.get_submodule("0.packed")) for model in made]
        assert same_tensors(*codes)
    assert coverage(transposed).macs == coverage(linear).macs == 12 * 6 * 5
    x = values(1, 2, 6)
    assert torch.allclose(transposed(x), linear(x), atol=1e-6)  # a code may be another by a rounded sum


def test_gpt2_is_quantized(tmp_path: Path) -> None:
    """All eight layers, found without being imported; the model is saved and loaded to the same bits."""
    model = _gpt2()
    expected = model(TOKENS).logits
    prepare(model, PTQConfig())
    assert torch.equal(model(TOKENS).logits, expected)
    convert(model)
    layers = [line for line in coverage(model).lines if ".c_" in line.path]
    assert [line.module for line in layers] == ["QuantizedLinear"] * 8
    assert coverage(model).unmeasured == ()
    assert (model(TOKENS).logits - expected).abs().max() < 0.1 * expected.abs().max()
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, _gpt2())
    assert torch.equal(loaded(TOKENS).logits, model(TOKENS).logits)


def test_points_of_a_float_weight_are_saved(tmp_path: Path) -> None:
    """A wrapper that stays is found again."""
    model, skeleton = _pair()[0], _pair()[0]
    prepare(model, PTQConfig(weight=no_quant()))
    model(values(0, 3, 6))
    assert isinstance(convert(model).get_submodule("0"), QuantTransposedLinear)
    save_quantized(model, tmp_path)
    loaded = load_quantized(tmp_path, skeleton)
    assert torch.equal(loaded(values(1, 3, 6)), model(values(1, 3, 6)))


class _Halved(Conv1D):
    """A subclass that computes something else."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return half of the output."""
        output: torch.Tensor = super().forward(x)  # type: ignore[no-untyped-call]  # of transformers
        return output / 2


def test_subclass_with_another_forward_keeps_it() -> None:
    """An integer layer would lose it: its steps have points, and its weight is integers."""
    model = nn.Sequential(_transposed(_Halved, 5, 6)).eval()
    x = values(0, 3, 6)
    expected = model(x)
    prepare(model, PTQConfig())
    assert torch.equal(model(x), expected)
    found = convert(model)
    assert isinstance(found.get_submodule("0"), _Halved)
    [line] = [line for line in coverage(found).lines if line.path == "0"]
    assert [point.split()[0] for point in line.points] == ["weight", "div_0", "forward_0_addmm_0"]
    assert (found(x) - expected).abs().max() < 0.02 * expected.abs().max()
