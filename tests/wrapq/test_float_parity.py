"""Until it is quantized, a wrapped module computes the float function, bit for bit."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from transformers.activations import GELUActivation, SiLUActivation
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from model_state import tensors_of
from tico.quantization import PTQConfig, convert, load_quantized, prepare, save_quantized
from tico_wrapq import Mode, QuantModuleBase
from tiny_models import values

ROWS, IMAGES, VIDEOS = (5, 8), (2, 4, 6, 6), (1, 2, 4, 4, 4)
LINE = (2, 4, 9)

MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "Linear": (lambda: nn.Linear(8, 3), ROWS),
    "Linear without bias": (lambda: nn.Linear(8, 3, bias=False), ROWS),
    "Conv1d": (lambda: nn.Conv1d(4, 2, 3, stride=2), LINE),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding="same", groups=2), IMAGES),
    "Conv2d circular": (lambda: nn.Conv2d(4, 2, 3, padding=1, padding_mode="circular"), IMAGES),
    "Conv2d dilated": (lambda: nn.Conv2d(4, 2, 2, dilation=2), IMAGES),
    "Conv3d": (lambda: nn.Conv3d(2, 2, 2), VIDEOS),
    "AdaptiveAvgPool2d": (lambda: nn.AdaptiveAvgPool2d(2), IMAGES),
    "AvgPool1d": (lambda: nn.AvgPool1d(2), LINE),
    "AvgPool2d": (lambda: nn.AvgPool2d(2), IMAGES),
    "BatchNorm1d": (lambda: nn.BatchNorm1d(8), ROWS),
    "BatchNorm2d": (lambda: nn.BatchNorm2d(4), IMAGES),
    "ELU": (nn.ELU, ROWS),
    "GELU": (nn.GELU, ROWS),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), IMAGES),
    "Hardsigmoid": (nn.Hardsigmoid, ROWS),
    "Hardswish": (nn.Hardswish, ROWS),
    "InstanceNorm2d": (lambda: nn.InstanceNorm2d(4), IMAGES),
    "LayerNorm": (lambda: nn.LayerNorm(8), ROWS),
    "LeakyReLU": (nn.LeakyReLU, ROWS),
    "LogSoftmax": (lambda: nn.LogSoftmax(-1), ROWS),
    "MaxPool1d": (lambda: nn.MaxPool1d(2), LINE),
    "MaxPool2d": (lambda: nn.MaxPool2d(2), IMAGES),
    "Mish": (nn.Mish, ROWS),
    "PReLU": (nn.PReLU, ROWS),
    "RMSNorm": (lambda: nn.RMSNorm(8), ROWS),
    "ReLU": (nn.ReLU, ROWS),
    "ReLU6": (nn.ReLU6, ROWS),
    "SiLU": (nn.SiLU, ROWS),
    "Sigmoid": (nn.Sigmoid, ROWS),
    "Softmax": (lambda: nn.Softmax(-1), ROWS),
    "Softplus": (nn.Softplus, ROWS),
    "Tanh": (nn.Tanh, ROWS),
    "Upsample": (lambda: nn.Upsample(scale_factor=2), IMAGES),
    "GELUActivation": (GELUActivation, ROWS),
    "LlamaRMSNorm": (lambda: LlamaRMSNorm(8), ROWS),
    "SiLUActivation": (SiLUActivation, ROWS),
}

every_module = pytest.mark.parametrize("name", MODULES)


def _model(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(MODULES[name][0]()).eval()


def _input(name: str) -> Tensor:
    return values(0, *MODULES[name][1])


def _quantized(name: str) -> nn.Module:
    prepared = prepare(_model(name), PTQConfig())
    prepared(_input(name))
    return convert(prepared)


@every_module
def test_prepared_module_computes_the_float_function(name: str) -> None:
    """Points that watch change no bit."""
    model = _model(name)
    expected = model(_input(name))
    prepared = prepare(model, PTQConfig())
    assert isinstance(prepared.get_submodule("0"), QuantModuleBase)
    assert torch.equal(prepared(_input(name)), expected)


@every_module
def test_quantized_module_is_near_and_on_its_grid(name: str) -> None:
    """Eight bits change the output by little, and leave at most 256 values."""
    converted, x = _quantized(name), _input(name)
    expected, found = _model(name)(x), converted(x)
    assert found.shape == expected.shape
    assert len(found.unique()) <= 256
    assert (found - expected).abs().max() <= 0.05 * max(expected.abs().max().item(), 1.0)


@every_module
def test_quantized_module_survives_saving(name: str, tmp_path: pytest.TempPathFactory) -> None:
    """What is loaded gives the same bits, wrappers that stay included."""
    converted, x = _quantized(name), _input(name)
    save_quantized(converted, str(tmp_path))
    loaded = load_quantized(str(tmp_path), _model(name))
    assert torch.equal(loaded(x), converted(x))
    assert tensors_of(loaded).keys() == tensors_of(converted).keys()


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "ReLU", "GELU", "LayerNorm", "BatchNorm2d"])
def test_input_may_be_given_by_keyword(name: str) -> None:
    """Torch calls it `input`; float, watched and quantized modules take it by that name."""
    model, x = _model(name), _input(name)
    expected = model.get_submodule("0")(input=x)
    prepare(model, PTQConfig())
    model(x)
    assert torch.equal(model.get_submodule("0")(input=x), expected)
    by_position = convert(model)(x)
    assert torch.equal(model.get_submodule("0")(input=x), by_position)


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
    wrapper = _quantized("PReLU").get_submodule("0")
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
    model, x = _ScaledModel().eval(), values(0, *ROWS)
    expected = model(x)
    prepared = prepare(model, PTQConfig())
    assert torch.equal(prepared(x), expected)
    assert (convert(prepared)(x) - expected).abs().max() < 0.1
