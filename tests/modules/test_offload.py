"""Layers whose tensors are elsewhere until they are called, as accelerate keeps those that it offloads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Protocol

import pytest
import torch
from torch import Tensor, nn

from references import same_bits
from tico_config import DType, LifecycleError, PerTensor, PTQConfig
from tico_modules import (
    ActivationGrid,
    PackedWeight,
    Parts,
    QuantizedConv1d,
    QuantizedConvTranspose1d,
    QuantizedEmbedding,
    QuantizedLinear,
)
from tico_observers import AffineParams
from tico_wrapq import PTQWrapper

META = torch.device("meta")


def _offload(model: nn.Module) -> None:
    """Keep the own tensors of each module on the meta device but for the time of its `forward`."""
    for module in {id(module): module for module in model.modules()}.values():
        _Offloaded(module)


class _Forward(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object:
        """Compute."""


class _Offloaded:
    """A `forward` in the place of a module's own, which brings its tensors and takes them away again."""

    def __init__(self, module: nn.Module) -> None:
        self._places: list[dict[str, Tensor | None]] = [module._buffers, module._parameters]  # type: ignore[list-item]  # torch's types
        self._kept = [dict(place) for place in self._places]
        self._forward: _Forward = module.forward
        self._take_away()
        module.forward = self

    def _take_away(self) -> None:
        for place, kept in zip(self._places, self._kept, strict=True):
            for name, tensor in kept.items():
                place[name] = None if tensor is None else nn.Parameter(tensor.to(META), False)
                if tensor is not None and not isinstance(tensor, nn.Parameter):
                    place[name] = tensor.to(META)

    def __call__(self, *args: object, **kwargs: object) -> object:
        for place, kept in zip(self._places, self._kept, strict=True):
            place.update(kept)
        try:
            return self._forward(*args, **kwargs)
        finally:
            self._take_away()


def _packed(*shape: int, bits: int = 4) -> PackedWeight:
    weight = torch.randn(*shape)
    return PackedWeight.round_to_nearest(weight, DType.uint(bits), symmetric=False, group_size=None)


def _grid() -> ActivationGrid:
    scale, zero_point = torch.tensor(0.05), torch.tensor(128)
    params = AffineParams(scale=scale, zero_point=zero_point, dtype=DType.uint(8), granularity=PerTensor())
    return ActivationGrid.static(params)


def _linear() -> nn.Module:
    return QuantizedLinear(Parts(packed=_packed(5, 8), bias=torch.randn(5), act_in=_grid(), act_out=_grid()))


def _by_ptq(module: nn.Module, x: Tensor) -> nn.Module:
    wrapper = PTQWrapper(module, PTQConfig())
    wrapper.enable_calibration()
    wrapper(x)
    wrapper.freeze_qparams()
    return wrapper.wrapped


def _tied() -> nn.Module:
    table = _packed(6, 8)
    return nn.Sequential(QuantizedEmbedding(Parts(packed=table)), QuantizedLinear(Parts(packed=table)))


X, TOKENS, IMAGE = torch.linspace(-3, 3, 24).view(3, 8), torch.arange(6).view(2, 3), torch.randn(2, 4, 9)
UINT4 = DType.uint(4)
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "linear": (_linear, X),
    "embedding": (lambda: QuantizedEmbedding(Parts(packed=_packed(6, 4))), TOKENS),
    "tied": (_tied, TOKENS),
    "convolution": (lambda: QuantizedConv1d.from_float(nn.Conv1d(4, 6, 3), UINT4), IMAGE),
    "transposed": (lambda: QuantizedConvTranspose1d.from_float(nn.ConvTranspose1d(4, 6, 3), UINT4), IMAGE),
    "bag": (lambda: _by_ptq(nn.EmbeddingBag(6, 4), TOKENS), TOKENS),
    "norm": (lambda: _by_ptq(nn.LayerNorm(8), X), X),
}
every_layer = pytest.mark.parametrize("name", LAYERS)


@every_layer
def test_codes_are_read_by_a_call(name: str) -> None:
    """So what brings the tensors of each module that is called brings the codes; the bits are the same."""
    make, x = LAYERS[name]
    layer = make()
    expected = layer(x)
    _offload(layer)
    assert all(tensor.is_meta for tensor in layer.state_dict().values() if tensor.dtype != torch.uint8)
    assert same_bits(layer(x), expected)
    assert same_bits(layer(x), expected)


@every_layer
def test_codes_without_values_are_refused(name: str) -> None:
    """Torch's kernels for the CPU would multiply by whatever is in memory."""
    make, x = LAYERS[name]
    layer = make()
    shape = layer(x).shape
    layer.to("meta")
    with pytest.raises(LifecycleError, match="on the meta device and has no values"):
        layer(x)
    assert layer(x.to("meta")).shape == shape


def test_a_weight_is_read_by_a_call_as_well() -> None:
    """Code that multiplies by `weight` without calling the layer gets the values, too."""
    layer = _linear()
    expected = copy.deepcopy(layer.weight).clone()  # type: ignore[operator]  # torch's type of an attribute
    _offload(layer)
    assert same_bits(layer.weight.clone(), expected)  # type: ignore[operator]  # as above
