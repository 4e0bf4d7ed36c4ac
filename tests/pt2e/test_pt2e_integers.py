"""What conversion leaves: integers with the grids that weights and data determine."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from graph_models import Function, calls, conv_net, decibels, photos, quantized
from tico.quantization import prepare, report
from tico_config import INT8, INT16, INT32, UINT16, DType, PT2EConfig, QScheme, QuantSpec, affine, no_quant
from tiny_models import values


def grid(x: Tensor) -> tuple[float, int]:
    """Return scale and zero point of an asymmetric uint8 grid for `x`, by their definition in float64."""
    low, high = min(x.min().item(), 0.0), max(x.max().item(), 0.0)
    scale = float(torch.tensor((high - low) / 255, dtype=torch.float32))
    return scale, -round(low / scale)


def moved(x: Tensor, scale: float, zero_point: int) -> Tensor:
    """Return `x` quantized and dequantized, as ``quantized_decomposed`` defines it."""
    codes = (torch.round(x * (1.0 / scale)) + zero_point).clamp(0, 255)
    return (codes - zero_point) * scale


def test_linear_layer_is_what_its_integers_say() -> None:
    """Input, weight, int32 bias and result are those of five lines of arithmetic."""
    layer, x = nn.Linear(8, 3), values(0, 16, 8)
    graph = quantized(layer, PT2EConfig(weight=affine(INT8)), x)
    own = dict(graph.named_buffers())
    low, high = layer.weight.detach().double().aminmax(dim=1)
    scale = torch.maximum(high / 127, -low / 128).float()
    assert own["weight_codes"].dtype == torch.int8
    codes = torch.round(layer.weight / scale[:, None]).clamp(-128, 127)
    assert torch.equal(own["weight_codes"], codes.to(torch.int8))
    in_scale, in_zero = grid(x)
    assert own["bias_codes"].dtype == torch.int32
    bias_scale = (scale.double() * in_scale).float()
    assert torch.equal(own["bias_codes"], torch.round(layer.bias / bias_scale).int())
    weight, bias = own["weight_codes"] * own["weight_scale"][:, None], own["bias_codes"] * own["bias_scale"]
    expected = F.linear(moved(x, in_scale, in_zero), weight, bias)
    out_grid = grid(layer(x).detach())
    assert torch.equal(graph(x), moved(expected, *out_grid))


def test_norms_are_folded_and_activation_functions_fused() -> None:
    """No batch norm is left, nothing stands between a convolution and its activation function."""
    model, x = conv_net(), photos(0)
    prepared = prepare(model, PT2EConfig(), args=(x,), inplace=False)
    # Folding changes the order of float32 operations only: a few units in the last place of 27 terms.
    assert torch.allclose(prepared(x), model(x), rtol=1e-5, atol=1e-6)
    graph = quantized(model, PT2EConfig(), x)
    assert calls(graph)["batch_norm"] == 0
    kinds = [line.module for line in report(graph).layers[1:]]
    assert kinds == ["conv2d + hardtanh", "conv2d + hardswish", "conv2d", "add", "mean", "linear"]
    for node in graph.graph.nodes:
        if "hardtanh" in str(node.target) or "hardswish" in str(node.target):
            assert "conv2d" in str(node.args[0])
    assert decibels(model(x), graph(x)) > 25


def test_silent_channels_keep_their_bias() -> None:
    """A channel without weights has no scale of its own: the bias alone, which gets 24 bits, decides."""
    layer, x = nn.Conv2d(3, 4, 3), photos(0)
    with torch.no_grad():
        layer.weight[1] = 0
        layer.bias = nn.Parameter(torch.tensor([0.1, 0.0123456, 0.2, 0.3]))
    graph = quantized(layer, PT2EConfig(overrides={"conv2d.act_out": no_quant()}), x)
    assert (graph(x)[:, 1] - 0.0123456).abs().max() < 0.0123456 * 2**-24


@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 3), lambda: nn.ConvTranspose1d(8, 3, 2)])
def test_biases_in_float_are_on_the_grid_of_their_integers(make: Callable[[], nn.Module]) -> None:
    """A runtime that rounds them itself finds the same integers, so both graphs give the same bits."""
    layer, x = make(), values(0, 16, 8, 1).squeeze(-1)
    x = x if isinstance(layer, nn.Linear) else x.unsqueeze(-1)
    by_bias = {
        str(bias): quantized(layer, PT2EConfig(weight=affine(INT8), bias=bias), x)
        for bias in (affine(INT32), no_quant())
    }
    integers, floats = by_bias.values()
    kept = dict(floats.named_buffers())["bias_on_grid"]
    own = dict(integers.named_buffers())
    assert torch.equal(kept, own["bias_codes"] * own["bias_scale"])
    assert "bias_codes" not in dict(floats.named_buffers())
    assert torch.equal(floats(x), integers(x))


def test_every_reader_dequantizes_for_itself() -> None:
    """Runtimes take an operator together with what dequantizes its inputs."""
    graph = quantized(conv_net(), PT2EConfig(), photos(0))
    nodes = [node for node in graph.graph.nodes if "dequantize_per" in str(node.target)]
    values_read = {node.args for node in nodes}
    assert len(values_read) < len(nodes)  # the residual is read twice
    assert all(len(node.users) == 1 for node in nodes)


@pytest.mark.parametrize(
    ("activation", "codes"),
    [
        (affine(INT8), torch.int8),
        (affine(INT8, QScheme.PER_TENSOR_ASYMM), torch.int8),
        (affine(INT16), torch.int16),
        (affine(UINT16), torch.uint16),
        (affine(DType.uint(4)), torch.uint8),
    ],
    ids=str,
)
def test_every_format_of_activations(activation: QuantSpec, codes: torch.dtype) -> None:
    """Codes are kept in the smallest format that holds them, and more bits are nearer to float."""
    config, x = PT2EConfig(activation=activation, weight=no_quant()), values(0, 16, 8)
    layer = nn.Linear(8, 8)
    graph = quantized(layer, config, x)
    formats = {node.args[-1] for node in graph.graph.nodes if "quantize_per_tensor" in str(node.target)}
    assert formats == {codes}
    # Two roundings, each of about 6 dB a bit, less 10 dB for the peak of normal values over their deviation.
    assert decibels(layer(x), graph(x)) > 6 * config.activation.dtype.bits - 13


def test_weights_alone_and_activations_alone() -> None:
    """`no_quant()` leaves one half in float: then there is no int32 bias either."""
    layer, x = nn.Linear(8, 4), values(0, 16, 8)
    weights = quantized(layer, PT2EConfig(activation=no_quant()), x)
    assert calls(weights) == {"linear": 1, "dequantize_per_channel": 1}
    activations = quantized(layer, PT2EConfig(weight=no_quant()), x)
    assert calls(activations)["dequantize_per_channel"] == 0
    assert calls(activations)["quantize_per_tensor"] == 2


def test_weights_per_tensor() -> None:
    """A scheme per tensor gives the weight one number, and the bias as well."""
    layer, x = nn.Linear(8, 4), values(0, 16, 8)
    config = PT2EConfig(weight=affine(INT8, QScheme.PER_TENSOR_SYMM))
    graph = quantized(layer, config, x)
    assert calls(graph)["dequantize_per_tensor"] == 4
    assert decibels(layer(x), graph(x)) > 35


def test_modules_called_twice_share_their_codes() -> None:
    """One weight that two calls read is kept once; each call has its own grids."""
    layer = nn.Linear(8, 8)
    model, x = Function(lambda x, layer: layer(torch.relu(layer(x))), layer=layer), values(0, 16, 8)
    graph = quantized(model, PT2EConfig(), x)
    codes = [name for name, buffer in graph.named_buffers() if buffer.dtype == torch.uint8]
    assert len(codes) == 1
    assert decibels(model(x), graph(x)) > 30


def test_computed_weights_become_constants() -> None:
    """The weight of a parametrized module is computed once, and quantized."""
    layer, x = nn.utils.parametrizations.weight_norm(nn.Linear(8, 4)), values(0, 16, 8)
    graph = quantized(layer, PT2EConfig(), x)
    assert calls(graph) == {
        "quantize_per_tensor": 2,
        "dequantize_per_tensor": 2,
        "dequantize_per_channel": 2,
        "linear": 1,
    }
    assert decibels(layer(x), graph(x)) > 35


def test_overrides_by_path_type_and_operator() -> None:
    """The path decides before the module's type, the type before the operator."""
    model, x = conv_net(), photos(0)
    config = PT2EConfig(
        overrides={"wide": {"dtype": DType.uint(4)}, "deep.*.act_out": affine(INT16)},
        module_types={"Conv2d": affine(INT8, observer=None), "torch.nn.modules.linear.Linear": no_quant()},
        operators={"conv2d": no_quant(), "add": no_quant()},
    )
    lines = {line.path: line for line in report(quantized(model, config, x)).layers}
    assert lines["deep.0"].activation == "act_out int16 symmetric"
    assert lines["deep.0"].weight == "int8 symmetric per channel 0"
    assert lines["wide"].weight == "uint4 asymmetric per channel 0"
    assert [lines["head"].weight, lines["head"].activation] == ["float", "float"]
    assert next(line for line in lines.values() if line.module == "add").activation == "float"
