"""What a quantized layer computes, against the formulas written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico.quantization import PTQConfig, convert, prepare
from tico.quantization.config import (
    INT16,
    DType,
    EMASpec,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    ObserverSpec,
    PercentileSpec,
    QScheme,
    QuantSpec,
    affine,
    no_quant,
)
from tico_config import EntropySpec, PerChannel, PerGroup, PerTensor
from tico_observers import Observer, observer_for
from tico_quantizers import QuantizedConv2d, QuantizedLinear
from tiny_models import values

FLOAT = no_quant()


def on_grid(x: Tensor, low: Tensor, high: Tensor, dtype: DType, *, symmetric: bool) -> Tensor:
    """Return `x` moved to the smallest grid from `low` to `high`, in a few lines."""
    low, high = low.double().clamp(max=0), high.double().clamp(min=0)
    if symmetric:
        scale, zero = torch.maximum(high / dtype.qmax, low / dtype.qmin).float(), torch.zeros(())
    else:
        scale = ((high - low) / (dtype.qmax - dtype.qmin)).float()
        zero = dtype.qmin - (low / scale.double()).round().float()
    steps = (x * scale.reciprocal()).round().clamp(dtype.qmin - zero, dtype.qmax - zero)
    return steps * scale


def per_tensor(x: Tensor, dtype: DType, *, symmetric: bool = False) -> Tensor:
    """Return `x` on the grid of its own range."""
    return on_grid(x, x.min(), x.max(), dtype, symmetric=symmetric)


def per_row(weight: Tensor, dtype: DType, *, symmetric: bool = False) -> Tensor:
    """Return a matrix with each row on the grid of its own range."""
    low, high = weight.amin(1, keepdim=True), weight.amax(1, keepdim=True)
    return on_grid(weight, low, high, dtype, symmetric=symmetric)


def _layer() -> nn.Linear:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Linear(12, 5).eval()


def _converted(config: PTQConfig, *batches: Tensor) -> QuantizedLinear:
    prepared = prepare(nn.Sequential(_layer()), config)
    for batch in batches:
        prepared(batch)
    found = convert(prepared).get_submodule("0")
    assert isinstance(found, QuantizedLinear)
    return found


def test_layer_computes_what_the_formulas_say() -> None:
    """Input on its grid, weight on the grids of its rows, output on its grid: bit for bit."""
    x, layer = values(0, 9, 12), _layer()
    found = _converted(PTQConfig(), x)
    moved = per_tensor(x, DType.uint(8))
    product = F.linear(moved, per_row(layer.weight.detach(), DType.uint(8)), layer.bias)
    # The grid of the output is that of the float output, which is what was watched.
    seen = layer(x).detach()
    expected = on_grid(product, seen.min(), seen.max(), DType.uint(8), symmetric=False)
    assert torch.equal(found(x), expected)


def test_convolution_computes_what_the_formulas_say() -> None:
    """The rows of a convolution's weight are its output channels."""
    x, layer = values(0, 2, 3, 6, 6), nn.Conv2d(3, 4, 3, padding=1).eval()
    prepared = prepare(nn.Sequential(layer), PTQConfig(activation=FLOAT))
    found = convert(prepared).get_submodule("0")
    assert isinstance(found, QuantizedConv2d)
    rows = per_row(layer.weight.detach().flatten(1), DType.uint(8)).view_as(layer.weight)
    assert torch.equal(found(x), F.conv2d(x, rows, layer.bias, padding=1))


def test_weights_only() -> None:
    """Without grids for activations the layer is the float one of the moved weight."""
    x, layer = values(0, 9, 12), _layer()
    found = _converted(PTQConfig(activation=FLOAT, weight=affine(DType.uint(4))))
    assert (found.act_in, found.act_out) == (None, None)
    assert torch.equal(found(x), F.linear(x, per_row(layer.weight.detach(), DType.uint(4)), layer.bias))


def test_activations_only() -> None:
    """A weight that is to stay float leaves the wrapper in place, its points frozen."""
    x, layer = values(0, 9, 12), _layer()
    prepared = prepare(nn.Sequential(_layer()), PTQConfig(weight=FLOAT))
    prepared(x)
    converted = convert(prepared)
    product = F.linear(per_tensor(x, DType.uint(8)), layer.weight, layer.bias)
    seen = layer(x)
    expected = on_grid(product, seen.min(), seen.max(), DType.uint(8), symmetric=False)
    assert torch.equal(converted(x), expected)
    assert torch.equal(dict(converted.named_parameters())["0.layer.weight"], layer.weight)


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        (affine(DType.int(4)), lambda w: per_row(w, DType.int(4), symmetric=True)),
        (affine(DType.int(8), QScheme.PER_CHANNEL_ASYMM), lambda w: per_row(w, DType.int(8))),
        (affine(DType.uint(8), QScheme.PER_TENSOR_ASYMM), lambda w: per_tensor(w, DType.uint(8))),
        (
            affine(DType.int(8), granularity=PerTensor()),
            lambda w: per_tensor(w, DType.int(8), symmetric=True),
        ),
        (affine(DType.uint(4), granularity=PerGroup(1, 4)), lambda w: _in_groups(w, 4)),
        (affine(DType.uint(4), granularity=PerGroup(-1, 5)), lambda w: _in_groups(w, 5)),
        (affine(INT16), lambda w: per_row(w, INT16, symmetric=True)),
        (affine(DType.uint(2), granularity=PerChannel(0)), lambda w: per_row(w, DType.uint(2))),
    ],
    ids=lambda value: str(value) if isinstance(value, QuantSpec) else "",
)
def test_weight_of_any_granularity(spec: QuantSpec, expected: type[Tensor]) -> None:
    """Per tensor, per row, per group of columns; symmetric or not; 2 to 16 bits."""
    found = _converted(PTQConfig(activation=FLOAT, weight=spec))
    assert torch.equal(found.dequantize(), expected(_layer().weight.detach()))


def _in_groups(weight: Tensor, size: int) -> Tensor:
    return torch.cat([per_row(part, DType.uint(4)) for part in torch.split(weight, size, 1)], 1)


@pytest.mark.parametrize("dtype", [INT16, DType.int(8), DType.uint(16), DType.uint(3)], ids=str)
def test_activations_of_any_format(dtype: DType) -> None:
    """The codes of the input have the format that is asked for."""
    x = values(0, 9, 12)
    config = PTQConfig(activation=FLOAT, overrides={"0.act_in": affine(dtype)})
    found = _converted(config, x)
    assert found.act_in is not None
    assert torch.equal(found.act_in(x), per_tensor(x, dtype, symmetric=dtype.signed))


@pytest.mark.parametrize(
    "spec",
    [MinMaxSpec(), EMASpec(0.5), HistogramSpec(), PercentileSpec(5.0, 95.0), MSESpec(20), EntropySpec(20)],
    ids=lambda spec: type(spec).__name__,
)
def test_grid_is_the_one_of_the_observer_asked_for(spec: ObserverSpec) -> None:
    """Each observer, fed the same batches by hand, determines the same grid."""
    batches = [values(seed, 9, 12) * (1 + seed) for seed in range(3)]
    config = PTQConfig(activation=affine(DType.uint(8), observer=spec))
    found = _converted(config, *batches)
    observer = observer_for(config.activation, "by hand", PerTensor())
    assert isinstance(observer, Observer)
    for batch in batches:
        observer.collect(batch)
    scale, zero_point = observer.compute_qparams()
    assert found.act_in is not None
    assert torch.equal(found.act_in.scale, scale)
    assert torch.equal(found.act_in.zero_point, zero_point)


def test_observers_differ() -> None:
    """The table above tells observers apart."""
    batches = [values(seed, 9, 12) * (1 + seed) for seed in range(3)]
    specs = (MinMaxSpec(), EMASpec(0.5), PercentileSpec(5.0, 95.0), MSESpec(20))
    scales = set()
    for spec in specs:
        found = _converted(PTQConfig(activation=affine(DType.uint(4), observer=spec)), *batches)
        assert found.act_in is not None
        scales.add(found.act_in.scale.item())
    assert len(scales) == len(specs)


@pytest.mark.parametrize("key", ["1", "1.*", "re:1\\..*", "1.weight", "*.weight", "re:.*weight"])
def test_rules_reach_modules_and_points(key: str) -> None:
    """A path of a module or a point, a glob, or a regular expression: each sets the weight's format."""
    model = nn.Sequential(nn.ReLU(), nn.Linear(4, 4)).eval()
    prepared = prepare(model, PTQConfig(overrides={key: affine(DType.uint(4))}))
    prepared(values(0, 3, 4))
    found = convert(prepared).get_submodule("1")
    assert isinstance(found, QuantizedLinear)
    assert found.bits == 4
    assert found.act_in is not None
    points_too = "weight" not in key
    assert found.act_in.dtype == (DType.uint(4) if points_too else DType.uint(8))
