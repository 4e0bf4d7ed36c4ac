"""GPTQ on the graphs that PT2E leaves: the main lines, and what they gain."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from graph_models import Function, calibrated, conv_net, decibels, encoder, photos, quantized
from tico.quantization import convert, prepare, report
from tico_config import CalibrationError, ConfigError, DType, GPTQConfig, PT2EConfig, affine, no_quant
from tico_pt2e import QuantGraph
from tico_quantizers.testing import refused, unchanged
from tiny_models import values

GPTQ = GPTQConfig(show_progress=False)


def net_case() -> tuple[nn.Module, list[Tensor], Tensor]:
    """Return the net, four calibration batches, and a test batch."""
    return conv_net(), [photos(seed, 16) for seed in range(4)], photos(9, 32)


def encoder_case() -> tuple[nn.Module, list[Tensor], Tensor]:
    """Return the encoder, four calibration batches, and a test batch."""
    return encoder(), [values(seed, 16, 6, 16) for seed in range(4)], values(9, 32, 6, 16)


def graph_of(model: nn.Module, config: PT2EConfig, batches: list[Tensor]) -> QuantGraph:
    """Return `model` quantized as a graph, calibrated with all batches."""
    graph = prepare(model, config, args=(batches[0],), inplace=False)
    for batch in batches:
        graph(batch)
    graph = convert(graph)
    assert isinstance(graph, QuantGraph)
    return graph


def with_gptq(graph: QuantGraph, config: GPTQConfig, batches: list[Tensor]) -> QuantGraph:
    """Quantize the weights of `graph` in place, and return it."""
    assert prepare(graph, config) is graph
    for batch in batches:
        graph(batch)
    assert convert(graph, config) is graph
    return graph


@pytest.mark.parametrize("case", [net_case, encoder_case])
def test_gptq_is_nearer_than_rounding(case: Callable[[], tuple[nn.Module, list[Tensor], Tensor]]) -> None:
    """With 4-bit weights and the same 8-bit activations, GPTQ's graph is nearer to the float model.

    From float weights and from 8-bit ones; 1 dB is a fifth less noise.
    """
    model, batches, test = case()
    expected = model(test)
    rounded = graph_of(model, PT2EConfig(weight=affine(DType.uint(4))), batches)
    nearest = decibels(expected, rounded(test))
    for weight in (no_quant(), affine(DType.uint(8))):
        graph = with_gptq(graph_of(model, PT2EConfig(weight=weight), batches), GPTQ, batches)
        assert decibels(expected, graph(test)) > nearest + 1
        assert {line.algorithm for line in report(graph).layers if line.weight != "float"} == {"gptq"}


def test_weights_on_that_very_grid_are_kept() -> None:
    """GPTQ at the bits that the graph has changes nothing, needs no data, and says so."""
    model, batches, test = net_case()
    graph = graph_of(model, PT2EConfig(), batches)
    before = graph(test)
    with_gptq(graph, GPTQConfig(bits=8, show_progress=False), [])
    assert torch.equal(graph(test), before)
    notes = {line.reason for line in report(graph).layers if line.algorithm == "gptq"}
    assert notes == {"already on that grid, codes kept"}
    mixed = GPTQConfig(bits=8, overrides={"head": {"bits": 3}}, show_progress=False)
    with_gptq(graph, mixed, batches)
    lines = {line.path: line for line in report(graph).layers}
    assert lines["head"].weight == "uint3 asymmetric per row"
    assert lines["wide"].reason == "already on that grid, codes kept"


def test_groups_order_and_signs() -> None:
    """Groups of columns in any order, signed codes, one grid: the graph holds the values that GPTQ finds."""
    layer, x = nn.Linear(16, 8), values(0, 64, 16)
    float_activations = PT2EConfig(activation=no_quant(), weight=affine(DType.uint(8)))
    for config in (
        GPTQConfig(group_size=4, static_groups=False, show_progress=False),
        GPTQConfig(group_size=8, symmetric=True, show_progress=False),
        GPTQConfig(per_tensor=True, show_progress=False),
    ):
        graph = graph_of(layer, float_activations, [x])
        start = copy.deepcopy(layer)
        with torch.no_grad():
            codes = graph.get_buffer("weight_codes") - graph.get_buffer("weight_zero_point")[:, None]
            start.weight.copy_(codes * graph.get_buffer("weight_scale")[:, None])
        model = nn.Sequential(start).eval()
        prepare(model, config)
        model(x)
        convert(model)
        assert torch.equal(with_gptq(graph, config, [x])(x), model(x))


def test_transposed_products_and_convolutions_are_taken_too() -> None:
    """What `addmm`, a product with a constant and transposed convolutions hold is a matrix as well."""
    weight, mixing = values(5, 32, 32) / 32**0.5, values(6, 8, 32)

    def computed(x: Tensor, conv: nn.Module) -> Tensor:
        product = torch.addmm(weight[0], x, weight) @ weight
        output: Tensor = conv(product[:, :, None])
        return output

    def inputs(seed: int) -> Tensor:
        # 32 correlated columns made of 8: what one column loses, others can make up for.
        return values(seed, 64, 8) @ mixing

    conv = nn.ConvTranspose1d(32, 4, 3)
    with torch.no_grad():
        conv.weight.copy_(values(7, 32, 4, 3) / 32**0.5)
    model = Function(computed, conv=conv).eval()
    batches = [inputs(seed) for seed in range(3)]
    graph = with_gptq(graph_of(model, PT2EConfig(weight=no_quant()), batches), GPTQ, batches)
    nearest = graph_of(model, PT2EConfig(weight=affine(DType.uint(4))), batches)
    test = inputs(9)
    assert sum(line.algorithm == "gptq" for line in report(graph).layers) == 3
    assert decibels(model(test), graph(test)) > decibels(model(test), nearest(test))


def test_refusals_leave_the_graph_as_it_was() -> None:
    """An override that matches nothing, a group that fits not, and no data; each works once mended."""
    model, batches, test = net_case()
    graph = graph_of(model, PT2EConfig(), batches)
    before = graph(test)
    with refused(graph, ConfigError, field="overrides"):
        prepare(graph, GPTQConfig(overrides={"heads": {"bits": 3}}))
    with refused(graph, ConfigError, field="group_size", module="stem.0"):
        prepare(graph, GPTQConfig(group_size=7))
    prepare(graph, GPTQ)
    with refused(graph, CalibrationError, module="stem.0"):
        convert(graph)
    assert torch.equal(graph(test), before)
    with unchanged(graph):
        twin = convert(with_data(copy.deepcopy(graph), batches), inplace=False)
    assert torch.equal(convert(with_data(graph, batches))(test), twin(test))


def with_data(graph: QuantGraph, batches: list[Tensor]) -> QuantGraph:
    """Return `graph` after it was called with every batch."""
    for batch in batches:
        graph(batch)
    return graph


def test_order_of_calibrating_and_copying_does_not_matter() -> None:
    """A graph prepared for GPTQ, copied and calibrated, gives what the original gives."""
    model, batches, test = encoder_case()
    graph = quantized(model, PT2EConfig(), batches[0])
    prepare(graph, GPTQ)
    twin = copy.deepcopy(graph)
    assert torch.equal(convert(with_data(graph, batches))(test), convert(with_data(twin, batches))(test))
    assert isinstance(calibrated(model, PT2EConfig(), test), QuantGraph)
