"""`target` of PT2E: what a runtime does not take is refused by `prepare`; presets are what profiles give."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import nn

from tico.quantization import GPTQConfig, PT2EConfig, convert, prepare
from tico.quantization.config import (
    FP8,
    INT32,
    MXFP4,
    UINT8,
    ConfigError,
    DeploymentProfile,
    DType,
    PerTensor,
    UnsupportedError,
    affine,
    no_quant,
    profiles,
)
from tico_quantizers.testing import unchanged

GRAPHS = (profiles.ONNX_RUNTIME, profiles.OPENVINO, profiles.XNNPACK, profiles.CIRCLE)
X = torch.linspace(-1, 1, 64).view(4, 16)


def stack() -> nn.Module:
    """Return two layers."""
    return nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 16)).eval()


def varied() -> nn.Module:
    """Return layers around operators that not every runtime has kernels for."""
    inner = nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 16), nn.Softmax(-1)
    return nn.Sequential(nn.Linear(16, 16), *inner).eval()


def refused(config: PT2EConfig, model: nn.Module) -> ConfigError:
    """Return the error with which `prepare` refuses a config; the model stays as it was."""
    with unchanged(model), pytest.raises(ConfigError) as caught:
        prepare(model, config, args=(X,), inplace=False)
    return caught.value


@pytest.mark.parametrize("profile", GRAPHS, ids=str)
def test_presets_are_legal_for_any_graph(profile: DeploymentProfile) -> None:
    """What a profile gives is not refused: layers, norms, activation functions, softmax."""
    prepare(varied(), profile.config(PT2EConfig), args=(X,), inplace=False)


@pytest.mark.parametrize(
    ("change", "field", "words"),
    [
        (
            {"activation": affine(UINT8)},
            "dtype",
            "activations of int8, and the activation is uint8",
        ),
        ({"activation": no_quant()}, "act_in", "inputs of int8"),
        ({"weight": affine(UINT8)}, "dtype", "XNNPACK takes weights of int8, and the weight is uint8"),
        ({"weight": affine(DType.int(16))}, "dtype", "and the weight is int16"),
        ({"bias": affine(INT32)}, "bias", "XNNPACK takes biases in float, and bias is int32"),
    ],
)
def test_a_misfit_names_what_is_legal(change: dict[str, object], field: str, words: str) -> None:
    """Each operator has a line; what holds for the whole graph has one."""
    config = attrs.evolve(PT2EConfig.xnnpack(), **change)  # type: ignore[arg-type]  # its fields
    error = refused(config, stack())
    assert field in {each.field for each in error.problems}
    assert words in str(error)


def test_an_operator_without_a_kernel_has_to_stay_float() -> None:
    """It is named, with the operator and the way out."""
    error = refused(attrs.evolve(PT2EConfig.xnnpack(), operators={}), varied())
    found = {each.remedy for each in error.problems if each.field == "operators"}
    assert "leave it float by operators={'softmax': no_quant()}" in found
    assert "leave it float by operators={'layer_norm': no_quant()}" in found


def test_everything_wrong_is_told_at_once() -> None:
    """Weights, activations, biases and operators are in one error."""
    config = PT2EConfig(activation=affine(UINT8), weight=affine(UINT8), target=profiles.XNNPACK)
    fields = {each.field for each in refused(config, varied()).problems}
    assert fields >= {"bias", "operators", "dtype"}


def test_a_runtime_without_graphs_takes_none() -> None:
    """VLLM has no place for activations that no layer reads."""
    error = refused(PT2EConfig(target=profiles.VLLM), stack())
    assert "vLLM has no place for the grid of this activation" in str(error)


def test_what_is_legal_may_differ_from_the_preset() -> None:
    """One scale for a weight is taken too."""
    config = attrs.evolve(PT2EConfig.xnnpack(), weight=affine(DType.int(8), granularity=PerTensor()))
    prepare(stack(), config, args=(X,), inplace=False)


def test_gptq_in_a_graph_has_a_target_too() -> None:
    """The weights that PT2E has left are checked when GPTQ is prepared."""
    config = attrs.evolve(PT2EConfig.xnnpack(), weight=no_quant())
    graph = prepare(stack(), config, args=(X,), inplace=False)
    graph(X)
    graph = convert(graph)
    with pytest.raises(ConfigError, match="XNNPACK takes weights of int8, and the weight is uint4"):
        prepare(graph, GPTQConfig(target=profiles.XNNPACK, show_progress=False))
    prepare(graph, profiles.XNNPACK.config(GPTQConfig, show_progress=False))


@pytest.mark.parametrize("field", ["weight", "activation"])
def test_graphs_have_no_floating_point_formats(field: str) -> None:
    """The dialect has integers alone: a spec of another format is refused by prepare."""
    config = attrs.evolve(PT2EConfig(), **{field: affine(FP8())})  # type: ignore[arg-type]
    with pytest.raises(UnsupportedError, match="fp8_e4m3"):
        prepare(stack(), config, args=(X,), inplace=False)


def test_gptq_in_a_graph_has_no_floating_point_formats() -> None:
    """It would leave codes for which there is no operator; the error names every weight."""
    graph = prepare(stack(), attrs.evolve(PT2EConfig.xnnpack(), weight=no_quant()), args=(X,), inplace=False)
    graph(X)
    graph = convert(graph)
    with pytest.raises(UnsupportedError, match="None for a graph of PT2E"):
        prepare(graph, GPTQConfig(dtype=MXFP4(), show_progress=False))
