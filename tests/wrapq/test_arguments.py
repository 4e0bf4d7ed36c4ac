"""What wrappers make of arguments, and which of them stay."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tico.quantization import PTQConfig, convert, prepare
from tico_wrapq import Mode, QuantModuleBase
from tiny_models import values
from wrapped_modules import CASES


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ReLU", "GELU", "LayerNorm", "BatchNorm2d"])
def test_input_may_be_given_by_keyword(name: str) -> None:
    """Torch calls it `input`; float, watched and quantized modules take it by that name."""
    case = CASES[name]
    model, [x] = case.model(), case.inputs
    expected = model.get_submodule("part")(input=x)
    prepare(model, PTQConfig())
    model(x)
    assert torch.equal(model.get_submodule("part")(input=x), expected)
    by_position = convert(model)(x)
    assert torch.equal(model.get_submodule("part")(input=x), by_position)


def test_embedding_is_a_table_of_the_same_rows() -> None:
    """Indices have no grid; the rows are near, and zero stays zero."""
    model = nn.Sequential(nn.Embedding(10, 4, padding_idx=3)).eval()
    tokens = torch.arange(10).view(2, 5)
    expected = model(tokens)
    prepared = prepare(model, PTQConfig())
    assert torch.equal(prepared(tokens), expected)
    found = convert(prepared)(tokens)
    assert (found - expected).abs().max() < 0.05
    assert not found[0, 3].any()


def test_wrapper_that_stays_is_quantized() -> None:
    """A PReLU keeps its parameter and its wrapper, whose points are frozen."""
    model = prepare(CASES["PReLU"].model(), PTQConfig())
    model(*CASES["PReLU"].inputs)
    wrapper = convert(model).get_submodule("part")
    assert isinstance(wrapper, QuantModuleBase)
    assert wrapper.mode is Mode.QUANT
    assert len(list(wrapper.parameters())) == 1


class _Scaled(nn.LayerNorm):
    def forward(self, input: Tensor, scale: float = 1.0) -> Tensor:  # noqa: A002  # torch's own name
        return scale * super().forward(input)


class _ScaledModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = _Scaled(8)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.norm(x, scale=2.0)
        return output


def test_subclass_keeps_its_own_arguments() -> None:
    """A wrapper that calls the module hands on what is no tensor."""
    model, x = _ScaledModel().eval(), values(0, 5, 8)
    expected = model(x)
    prepared = prepare(model, PTQConfig())
    assert torch.equal(prepared(x), expected)
    assert (convert(prepared)(x) - expected).abs().max() < 0.1
