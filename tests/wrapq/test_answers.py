"""A replacement answers about itself what the float module answered."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import attrs
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import (
    MobileNetV2Config,
    MobileNetV2ForImageClassification,
    WhisperConfig,
    WhisperForConditionalGeneration,
)
from transformers.pytorch_utils import Conv1D

from references import same_bits
from tico.quantization import GPTQConfig, PTQConfig, convert, prepare
from tico_config import DType, affine, no_quant
from tico_modules import (
    PackedWeight,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedLinear,
    RotatedInput,
    ScaledInput,
    answer_for,
    load_quantized,
    save_quantized,
)
from tico_quantizers.layers import as_layer, matrix, shape, with_weight
from tico_wrapq import FoldedNorm, PTQWrapper, QuantizedNorm, QuantModuleBase, QuantUnary
from tico_wrapq.base import ACT_OUT, PointDeclaration, QuantPoint
from tico_wrapq.testing import WrapperCase
from tiny_models import values
from wrapped_modules import CASES, as_if_trained

OWN = {
    # A wrapper's `mode` is whether it is float, watches or is quantized.
    "mode": "QuantUnary, QuantEmbeddingBag",
    # A function in the float layer, a module with points in the wrapper; both are called alike.
    "activation": "QuantTransformerEncoderLayer",
}


def answers_of(module: nn.Module) -> dict[str, object]:
    """Return the public attributes of `module` that are no modules."""
    named: Mapping[str, object] = {**vars(module), **module._parameters, **module._buffers}
    return {name: value for name, value in named.items() if not name.startswith("_") and name != "training"}


def unanswered(old: nn.Module, new: nn.Module) -> list[str]:
    """Return the names of what `new` answers in another way than `old`, tensors by shape and dtype."""
    expected = answers_of(old)
    own = {name for name, kinds in OWN.items() if type(new).__name__ in kinds}
    return [name for name in expected.keys() - own if not _same(expected[name], _ask(new, name))]


def _ask(module: nn.Module, name: str) -> object:
    answer: object = getattr(module, name, "no answer")
    return answer


def _same(one: object, other: object) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
    return type(one) is type(other) and one == other


def _converted(case: WrapperCase) -> nn.Module:
    prepared = prepare(case.model(), case.config)
    prepared(*case.inputs)
    return convert(prepared)


@pytest.mark.parametrize("name", CASES)
def test_every_wrapper_answers(name: str, tmp_path: Path) -> None:
    """Watched, quantized and loaded."""
    case = CASES[name]
    prepared = prepare(case.model(), case.config)
    assert unanswered(case.make(), prepared.get_submodule("part")) == []
    converted = _converted(case)
    assert unanswered(case.make(), converted.get_submodule("part")) == []
    save_quantized(converted, tmp_path)
    assert unanswered(case.make(), load_quantized(tmp_path, case.model()).get_submodule("part")) == []


def _transposed() -> nn.Module:
    layer: nn.Module = Conv1D(3, 8)  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    return layer


LAYERS: dict[str, Callable[[], nn.Module]] = {
    **{name: case.make for name, case in CASES.items() if name.startswith(("Linear", "Conv"))},
    "Conv1D": _transposed,
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", LAYERS)
def test_every_integer_layer_answers(name: str, dtype: torch.dtype) -> None:
    """Those that algorithms put in the place of layers, whatever the dtype of the codes' solver."""
    layer = as_layer(LAYERS[name]().to(dtype))
    assert layer is not None
    packed = PackedWeight.round_to_nearest(
        matrix(layer).view(shape(layer)), DType.uint(4), symmetric=False, group_size=None
    )
    new = with_weight(layer, packed)
    swapped = {"weight"} if name == "Conv1D" else set()  # (in, out) there; an integer layer has (out, in)
    assert set(unanswered(layer, new)) == swapped
    assert new.weight.dtype == dtype
    integer = as_layer(new)
    assert integer is not None
    again = with_weight(integer, packed)  # by the next algorithm
    assert set(unanswered(layer, again)) == swapped
    bare = new.with_parts(new.parts)
    assert answer_for(new, bare) is bare
    assert set(unanswered(layer, bare)) == swapped


class _RoundOff(Protocol):
    def __call__(self, layer: object, dtype: DType, /) -> nn.Module:
        """Return the integer layer of `layer`."""


FROM_FLOAT: list[tuple[Callable[[], nn.Module], type[nn.Module]]] = [
    (lambda: nn.Linear(6, 4), QuantizedLinear),
    (lambda: nn.Conv1d(2, 4, 3, padding="same"), QuantizedConv1d),
    (lambda: nn.Conv2d(2, 4, 3, padding_mode="reflect", padding=1), QuantizedConv2d),
    (lambda: nn.Conv3d(2, 4, 3, groups=2), QuantizedConv3d),
    (lambda: nn.ConvTranspose1d(2, 4, 3, stride=2), QuantizedConvTranspose1d),
    (lambda: nn.ConvTranspose2d(2, 4, 3, output_padding=1, stride=2), QuantizedConvTranspose2d),
    (lambda: nn.ConvTranspose3d(2, 4, 3, dilation=2), QuantizedConvTranspose3d),
]


@pytest.mark.parametrize("home", ["parameter", "buffer", "attribute"])
@pytest.mark.parametrize("index", range(len(FROM_FLOAT)))
def test_rounded_layer_answers_and_keeps_its_bias(index: int, home: str) -> None:
    """Wherever the float layer has it: frozen layers have it as a buffer."""
    make, kind = FROM_FLOAT[index]
    round_off: _RoundOff = getattr(kind, "from_float")  # noqa: B009  # each takes a class of its own
    layer = make()
    bias = layer.get_parameter("bias").detach().clone()
    if home != "parameter":
        del layer.bias
        if home == "buffer":
            layer.register_buffer("bias", bias)
        else:
            layer.bias = bias
    new = round_off(layer, DType.uint(4))
    assert unanswered(layer, new) == []
    assert same_bits(new.bias, bias)  # type: ignore[arg-type]


def test_folded_norm_answers_as_one_that_does_nothing() -> None:
    """Its statistics, weight and bias are those of the identity; dtype and settings are the float norm's."""
    for dtype in (torch.float32, torch.float64):
        layer, norm = nn.Conv2d(2, 3, 3), as_if_trained(nn.BatchNorm2d(3, eps=1e-3, momentum=0.2))
        model = nn.Sequential(layer, norm).eval().to(dtype)
        prepared = prepare(model, PTQConfig())
        prepared(values(0, 2, 2, 5, 5).to(dtype))
        new = convert(prepared).get_submodule("1")
        assert isinstance(new, FoldedNorm)
        assert unanswered(norm, new) == []
        x = values(1, 2, 3, 4, 4).to(dtype)
        arguments = (new.running_mean, new.running_var, new.weight, new.bias)
        found = F.batch_norm(x, *arguments, eps=new.eps)
        # 1 - eps is rounded once, and so is the sum with eps.
        assert (found - x).abs().max() <= 2 * torch.finfo(dtype).eps * x.abs().max()
        assert new.to(torch.float16).running_mean.dtype == torch.float16


def test_statistics_of_a_norm_fit_its_weight_and_bias() -> None:
    """Whoever computes a batch norm from its tensors gets what the integer norm computes."""
    norm = as_if_trained(nn.BatchNorm1d(8)).eval()
    model = nn.Sequential(norm)
    prepared = prepare(model, PTQConfig(activation=affine(DType.uint(16))))
    x = values(0, 5, 8)
    prepared(x)
    new = convert(prepared).get_submodule("0")
    assert isinstance(new, QuantizedNorm)
    bare = new.with_parts(attrs.evolve(new.parts, act_in=None, act_out=None))
    found = F.batch_norm(x, new.running_mean, new.running_var, new.weight, new.bias, eps=new.eps)
    assert torch.allclose(found, bare(x), rtol=1e-6, atol=1e-6)  # two roundings to float32


def test_changed_input_answers_for_its_layer() -> None:
    """What SmoothQuant, AWQ and rotations put in front of a layer is asked what the layer is."""
    linear = nn.Linear(4, 3)
    assert unanswered(linear, RotatedInput(linear, torch.eye(2), torch.eye(2))) == []
    for layer, axis in ((nn.Linear(3, 4), -1), (nn.Conv2d(3, 4, 2, stride=2), -3)):
        assert unanswered(layer, ScaledInput(layer, torch.ones(3), axis=axis)) == []


def _whisper() -> tuple[nn.Module, dict[str, Tensor]]:
    config = WhisperConfig(
        vocab_size=50,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        num_mel_bins=8,
        max_source_positions=12,
        max_target_positions=12,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
    )
    tokens = torch.tensor([[1, 3, 4], [1, 5, 6]])
    inputs = {"input_features": values(0, 2, 8, 24), "decoder_input_ids": tokens}
    return WhisperForConditionalGeneration(config), inputs


def _mobile_net() -> tuple[nn.Module, dict[str, Tensor]]:
    config = MobileNetV2Config(image_size=32, depth_multiplier=0.25, min_depth=4, depth_divisible_by=4)
    return MobileNetV2ForImageClassification(config), {"pixel_values": values(0, 2, 3, 32, 32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", [GPTQConfig(bits=8, show_progress=False), PTQConfig(strict_wrap=False)])
@pytest.mark.parametrize("make", [_whisper, _mobile_net])
def test_models_that_ask_their_layers_run(
    make: Callable[[], tuple[nn.Module, dict[str, Tensor]]],
    config: GPTQConfig | PTQConfig,
    dtype: torch.dtype,
) -> None:
    """Whisper reads strides, MobileNet V2 the padding, of convolutions that are integers now."""
    model, inputs = make()
    model = model.eval().to(dtype)
    inputs = {name: x.to(dtype) if x.is_floating_point() else x for name, x in inputs.items()}
    with torch.no_grad():
        expected = model(**inputs).logits
        prepared = prepare(model, config)
        prepared(**inputs)
        found = convert(prepared)(**inputs).logits
    assert found.dtype == expected.dtype
    assert (found - expected).abs().max() < 0.2 * expected.abs().max()


class _Opening(nn.Module):
    """Has an attribute of the name that a point of its wrapper has, and one that it hides."""

    def __init__(self) -> None:
        super().__init__()
        self.act_out, self.slope, self._cache = "float", 0.5, 3

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, times the slope where it is negative."""
        return torch.where(x < 0, x * self.slope, x)


class _QuantOpening(QuantModuleBase):
    """Takes it apart, so that it answers by itself."""

    kind: ClassVar[str] = "tests.opening"
    points: ClassVar[tuple[PointDeclaration, ...]] = (ACT_OUT,)
    slope: float

    def adopt(self, module: nn.Module) -> None:
        """Keep nothing."""

    def forward(self, x: Tensor) -> Tensor:
        """Return what the module did, by way of the point."""
        moved: Tensor = self.point("act_out")(torch.where(x < 0, x * self.slope, x))
        return moved


class _Unary(QuantUnary):
    """Keeps it whole."""

    kind: ClassVar[str] = "tests.unary"


@pytest.mark.parametrize("kind", [_QuantOpening, _Unary])
def test_wrapper_of_ones_own_answers(kind: type[QuantModuleBase]) -> None:
    """A point goes before an answer of the same name; what is private stays with the module."""
    wrapper = kind(_Opening(), "here", lambda path: no_quant())
    for each in (wrapper, copy.deepcopy(wrapper)):
        assert each.slope == 0.5
        assert isinstance(each.act_out, QuantPoint)
        assert same_bits(each(values(0, 5)), _Opening()(values(0, 5)))
        for name in ("_cache", "nothing of the kind"):
            with pytest.raises(AttributeError):
                getattr(each, name)


def test_a_buffer_is_taken_in_beside_one_of_the_float_module() -> None:
    """A tool that counts operations gives every module a buffer of the same name, the innermost one first."""
    wrapper = PTQWrapper(nn.ReLU()).wrapped
    for _, module in reversed(list(wrapper.named_modules())):
        module.register_buffer("total_ops", torch.zeros(1))
    assert "total_ops" in dict(wrapper.named_buffers(recurse=False))
    with pytest.raises(KeyError):
        wrapper.register_buffer("mode", torch.zeros(1))
