"""The weight of an integer layer answers what a float one answers, and cannot be written to."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import prune
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from references import same_bits
from tico_config import DType, LifecycleError
from tico_modules import (
    PackedWeight,
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedEmbedding,
    QuantizedLinear,
    RotatedInput,
    ScaledInput,
)
from tico_modules import Parts as LayerParts
from tico_wrapq import PTQWrapper

UINT4 = DType.uint(4)


def _packed(*shape: int) -> LayerParts:
    weight = torch.randn(*shape)
    return LayerParts(packed=PackedWeight.round_to_nearest(weight, UINT4, symmetric=False, group_size=None))


def _by_ptq(module: nn.Module, x: Tensor) -> nn.Module:
    wrapper = PTQWrapper(module)
    wrapper.enable_calibration()
    wrapper(x)
    wrapper.freeze_qparams()
    return wrapper.wrapped


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: QuantizedLinear.from_float(nn.Linear(12, 5), UINT4, group_size=4),
    "embedding": lambda: QuantizedEmbedding(_packed(6, 4)),
    "bag": lambda: _by_ptq(nn.EmbeddingBag(6, 4), torch.arange(6).view(2, 3)),
    "norm": lambda: _by_ptq(nn.LayerNorm(4), torch.randn(3, 4)),
    "batch norm": lambda: _by_ptq(nn.BatchNorm1d(4).eval(), torch.randn(3, 4)),
    "conv1d": lambda: QuantizedConv1d.from_float(nn.Conv1d(2, 3, 3), UINT4),
    "conv2d": lambda: QuantizedConv2d.from_float(nn.Conv2d(2, 4, 3, groups=2), UINT4),
    "conv3d": lambda: QuantizedConv3d.from_float(nn.Conv3d(2, 2, 2), UINT4),
    "conv_transpose1d": lambda: QuantizedConvTranspose1d.from_float(nn.ConvTranspose1d(2, 4, 3), UINT4),
    "conv_transpose2d": lambda: QuantizedConvTranspose2d.from_float(
        nn.ConvTranspose2d(4, 6, 3, groups=2), UINT4
    ),
    "conv_transpose3d": lambda: QuantizedConvTranspose3d.from_float(nn.ConvTranspose3d(2, 2, 2), UINT4),
    "rotated input": lambda: RotatedInput(
        QuantizedLinear.from_float(nn.Linear(4, 2), UINT4), torch.eye(2), torch.eye(2).flip(0)
    ),
    "scaled input": lambda: ScaledInput(
        QuantizedLinear.from_float(nn.Linear(3, 2), UINT4), torch.tensor([1.0, 2.0, 0.5]), axis=-1
    ),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


def _weight(layer: nn.Module) -> Tensor:
    weight: Tensor = layer.weight  # type: ignore[assignment]  # torch's type of an attribute
    return weight


def _add(layer: nn.Module) -> None:
    weight = _weight(layer)
    weight += 1


def _add_to_data(layer: nn.Module) -> None:
    _weight(layer).data += 1


def _set_data(layer: nn.Module) -> None:
    _weight(layer).data = torch.zeros(1)


def _set_elements(layer: nn.Module) -> None:
    with torch.no_grad():
        _weight(layer)[0] = 1.0


def _train(layer: nn.Module) -> None:
    _weight(layer).requires_grad = True


def _replace(layer: nn.Module) -> None:
    layer.weight = torch.zeros(1)


WRITES: dict[str, Callable[[nn.Module], object]] = {
    "mul_": lambda layer: _weight(layer).mul_(0),
    "copy_": lambda layer: _weight(layer).copy_(torch.ones(())),
    "+=": _add,
    "data +=": _add_to_data,
    "data =": _set_data,
    "data.zero_": lambda layer: _weight(layer).data.zero_(),
    "[0] =": _set_elements,
    "init": lambda layer: nn.init.zeros_(_weight(layer)),
    "view": lambda layer: _weight(layer).view(-1).zero_(),
    "row": lambda layer: _weight(layer)[0].fill_(1),
    "transposed data": lambda layer: _weight(layer).data.transpose(0, -1).mul_(2),
    "one of several views": lambda layer: _weight(layer).unbind()[0].zero_(),
    "detached": lambda layer: _weight(layer).detach().zero_(),
    "out": lambda layer: torch.neg(_weight(layer).clone(), out=_weight(layer)),
    "foreach": lambda layer: torch._foreach_mul_([_weight(layer)], 0.0),
    "requires_grad": _train,
    "Parameter": lambda layer: nn.Parameter(_weight(layer)),
    "memory": lambda layer: _weight(layer).data_ptr(),
    "storage": lambda layer: _weight(layer).untyped_storage(),
}


@every_layer
@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused(name: str, write: str) -> None:
    """It would go nowhere. The error says what to do, and the layer is as it was."""
    layer = LAYERS[name]()
    before = _weight(layer).clone()
    with pytest.raises(LifecycleError, match=r"dequantize\(\)") as caught:
        WRITES[write](layer)
    assert caught.value.field == "weight"
    assert same_bits(_weight(layer).clone(), before)


def _set(value: Tensor | None) -> Callable[[nn.Module], object]:
    return lambda layer: setattr(layer, "weight", value)


def _prune(layer: nn.Module) -> None:
    prune.l1_unstructured(layer, "weight", amount=0.5)  # type: ignore[no-untyped-call]  # torch's own


def _prune_globally(layer: nn.Module) -> None:
    prune.global_unstructured([(layer, "weight")], pruning_method=prune.L1Unstructured, amount=0.5)


REPLACEMENTS: dict[str, Callable[[nn.Module], object]] = {
    "tensor": _set(torch.zeros(1)),
    "parameter": _set(nn.Parameter(torch.zeros(1))),
    "none": _set(None),
    "no more": lambda layer: delattr(layer, "weight"),
    "pruned": _prune,
    "pruned among others": _prune_globally,
}


@every_layer
@pytest.mark.parametrize("change", REPLACEMENTS)
def test_another_weight_is_refused(name: str, change: str) -> None:
    """A layer that computes with codes would not look at it. The layer is as it was."""
    layer = LAYERS[name]()
    before = _weight(layer).clone()
    with pytest.raises(LifecycleError, match="integer layer"):
        REPLACEMENTS[change](layer)
    assert not {"weight", "weight_orig"} & {*vars(layer), *layer._parameters, *layer._buffers}
    assert same_bits(_weight(layer).clone(), before)


def test_a_norm_is_not_folded_into_it() -> None:
    """Torch's own fusion replaces the weight, which is refused."""
    conv, linear = LAYERS["conv2d"]().eval(), LAYERS["linear"]().eval()
    with pytest.raises(LifecycleError, match="integer layer"):
        fuse_conv_bn_eval(conv, nn.BatchNorm2d(4).eval())  # type: ignore[type-var]  # as a user would
    with pytest.raises(LifecycleError, match="integer layer"):
        fuse_linear_bn_eval(linear, nn.BatchNorm1d(5).eval())  # type: ignore[type-var]  # as a user would


@every_layer
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_questions_compute_nothing(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """Dtype, device and shape are those of the float weight, and codes stay packed for them."""
    layer = LAYERS[name]().to(dtype)
    values = _weight(layer).clone()
    monkeypatch.setattr(PackedWeight, "dequantize", lambda packed: pytest.fail("it was dequantized"))
    weight = _weight(layer)
    assert (weight.dtype, weight.device, weight.shape) == (dtype, values.device, values.shape)
    assert (weight.ndim, weight.numel(), weight.stride()) == (values.ndim, values.numel(), values.stride())
    assert weight.is_floating_point()
    assert not weight.requires_grad
    assert not isinstance(weight, nn.Parameter)


@every_layer
def test_what_computes_gets_the_values(name: str) -> None:
    """As do copies, files and pickles, which are ordinary tensors that can be written to."""
    layer = LAYERS[name]()
    weight, values = _weight(layer), _weight(layer).clone()
    assert type(values) is Tensor
    file = io.BytesIO()
    torch.save(weight, file)
    file.seek(0)
    target = torch.zeros_like(values)
    copies = (
        target.copy_(weight),
        copy.deepcopy(weight),
        pickle.loads(pickle.dumps(weight)),  # noqa: S301  # our own bytes
        torch.load(file, weights_only=True),
        torch.tensor(weight.tolist()),
        weight + torch.zeros(()),
    )
    for each in copies:
        assert type(each) is Tensor
        assert same_bits(each, values)
    assert repr(weight) == repr(values)
    assert weight.sum().item() == values.sum().item()


@pytest.mark.parametrize("bias", [None, torch.arange(5.0)])
def test_functions_of_torch_take_it_for_the_weight(bias: Tensor | None) -> None:
    """The bits are those that an ordinary tensor of the same values gives, gradients of the input too."""
    layer, x = LAYERS["linear"](), torch.randn(2, 3, 12, requires_grad=True)
    expected = F.linear(x, _weight(layer).clone(), bias)
    found = F.linear(x, _weight(layer), bias)
    assert same_bits(found, expected)
    [wanted] = torch.autograd.grad(expected.sum(), x)
    [got] = torch.autograd.grad(found.sum(), x)
    assert same_bits(got, wanted)


class _Reads(nn.Module):
    """Casts to the dtype of one layer's weight, and multiplies by that of another one without calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.one = QuantizedLinear.from_float(nn.Linear(8, 8, bias=False), UINT4, group_size=4)
        self.other = QuantizedLinear.from_float(nn.Linear(8, 4), DType.int(8))

    def forward(self, x: Tensor) -> Tensor:
        """Return the product."""
        hidden: Tensor = self.one(x.to(self.one.weight.dtype))
        return F.linear(hidden, self.other.weight, self.other.bias)


@pytest.mark.parametrize("strict", [False, True])
def test_a_traced_program_reads_it(strict: bool) -> None:
    """Export and compilation give the same bits, without a break of the graph."""
    model, x = _Reads().eval(), torch.randn(3, 8)
    expected = model(x)
    assert same_bits(torch.export.export(model, (x,), strict=strict).module()(x), expected)
    assert same_bits(torch.compile(model, backend="eager", fullgraph=True)(x), expected)


def test_a_multiplied_input_is_in_the_weight() -> None:
    """What reads the weight of a layer without calling it gets one that does the same to an input."""
    factor = torch.tensor([2.0, 0.5, 4.0, 1.0])
    layers: list[tuple[nn.Module, Tensor, int]] = [
        (nn.Linear(4, 3, bias=False), torch.randn(5, 4), -1),
        (nn.Conv1d(4, 6, 2, groups=2, bias=False), torch.randn(2, 4, 5), -2),
        (nn.ConvTranspose1d(4, 6, 2, groups=2, bias=False), torch.randn(2, 4, 5), -2),
    ]
    for layer, x, axis in layers:
        scaled = ScaledInput(layer, factor, axis=axis)
        plain = copy.deepcopy(layer)
        plain.weight = nn.Parameter(scaled.weight.clone())
        # Factors are powers of two, so that both orders of multiplying give the same bits.
        assert same_bits(plain(x), scaled(x))
