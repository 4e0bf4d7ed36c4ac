"""What `prepare` takes for a target, the exporter of that target takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tico.quantization import AWQConfig, GPTQConfig, PT2EConfig, PTQConfig, convert, prepare
from tico.quantization.config import (
    BaseConfig,
    ConfigError,
    DeploymentProfile,
    DType,
    Granularity,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    QScheme,
    QuantSpec,
    UnsupportedError,
    affine,
    no_quant,
    profiles,
)
from tico_export import ExecuTorch, ExporterEntry, ExportTarget, Onnx, OpenVINO, Source
from tico_export.formats import EXECUTORCH_ENTRY, ONNX_ENTRY, OPENVINO_ENTRY, PT2, PT2_ENTRY

EXPORTERS: Final[Mapping[DeploymentProfile, tuple[ExporterEntry, ExportTarget]]] = {
    profiles.ONNX_RUNTIME: (ONNX_ENTRY, Onnx()),
    profiles.OPENVINO: (OPENVINO_ENTRY, OpenVINO()),
    profiles.XNNPACK: (EXECUTORCH_ENTRY, ExecuTorch()),
    profiles.CIRCLE: (PT2_ENTRY, PT2(dialect="circle")),
}
X: Final = torch.linspace(-1, 1, 96).view(2, 48)


class Residual(nn.Module):
    """Layers, a norm, and steps between them."""

    def __init__(self) -> None:
        """Make the layers."""
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(48, 32), nn.LayerNorm(32), nn.Linear(32, 32)

    def forward(self, x: Tensor) -> Tensor:
        """Return the result."""
        hidden = torch.relu(self.first(x))
        y: Tensor = hidden + self.last(self.norm(hidden))
        return y


def model() -> nn.Module:
    """Return the same small model every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual().eval()


dtypes = st.builds(DType, st.sampled_from([3, 4, 8, 16]), st.booleans())
weight_units: st.SearchStrategy[Granularity | None] = st.sampled_from(
    [None, PerTensor(), PerChannel(0), PerGroup(size=16), PerGroup(size=12)]
)
activation_units: st.SearchStrategy[Granularity | None] = st.sampled_from([None, PerToken(), PerChannel(-1)])


@st.composite
def specs(draw: st.DrawFn, units: st.SearchStrategy[Granularity | None]) -> QuantSpec:
    """Draw a spec of integers, or none."""
    dtype, unit = draw(dtypes), draw(units)
    wide = isinstance(unit, PerChannel | PerGroup)
    scheme = QScheme.PER_CHANNEL_ASYMM if wide else QScheme.PER_TENSOR_ASYMM
    chosen = draw(st.none() | st.just(scheme)) if unit is not None else None
    return draw(st.just(affine(dtype, chosen, granularity=unit)) | st.just(no_quant()))


paths = st.sampled_from(["first", "first.act_in", "norm", "norm.act_out", "last.weight", "*.act_in", "*"])
changes = st.dictionaries(paths, specs(activation_units), max_size=2)


@st.composite
def ptq_configs(draw: st.DrawFn, profile: DeploymentProfile) -> PTQConfig:
    """Draw a config that the profile gives, or any, with a few exceptions."""
    near = draw(st.sampled_from(profile.configs(PTQConfig)))
    anything = PTQConfig(
        weight=draw(specs(weight_units)), activation=draw(specs(activation_units)), target=profile
    )
    base = near if draw(st.integers(0, 2)) else anything
    return attrs.evolve(base, overrides=draw(changes), scope=draw(st.sampled_from(["all", "linear"])))


@st.composite
def weight_configs(draw: st.DrawFn, profile: DeploymentProfile) -> BaseConfig:
    """Draw a config of an algorithm for weights."""
    bits, size = draw(st.sampled_from([3, 4, 8])), draw(st.sampled_from([None, 16, 12, 48]))
    symmetric, ragged = draw(st.booleans()), draw(st.booleans())
    kinds: list[type[GPTQConfig | AWQConfig]] = [GPTQConfig, AWQConfig]
    return draw(st.sampled_from(kinds))(
        bits=bits,
        group_size=size,
        symmetric=symmetric,
        ragged_groups=ragged,
        show_progress=False,
        target=profile,
    )


def converted(start: nn.Module, config: BaseConfig) -> nn.Module | None:
    """Return a model quantized by a config; None where `prepare` refuses it."""
    try:
        prepared = prepare(start, config, args=(X,))
    except (ConfigError, UnsupportedError):
        return None
    prepared(X)
    return convert(prepared).eval()


def problems(profile: DeploymentProfile, done: nn.Module) -> list[str]:
    """Return what the exporter of the target finds wrong."""
    entry, target = EXPORTERS[profile]
    return list(map(str, entry.make(target).problems(Source.read(done))))


@given(st.sampled_from(list(EXPORTERS)), st.data())
def test_what_prepare_takes_of_ptq_the_exporter_takes(
    profile: DeploymentProfile, data: st.DataObject
) -> None:
    """Accepted by `prepare` = nothing wrong for the exporter."""
    done = converted(model(), data.draw(ptq_configs(profile)))
    assert done is None or problems(profile, done) == []


@given(st.sampled_from(list(EXPORTERS)), st.data())
def test_what_prepare_takes_one_after_the_other_the_exporter_takes(
    profile: DeploymentProfile, data: st.DataObject
) -> None:
    """Weights first, then activations: what the second `prepare` takes is what the file will hold."""
    weights = converted(model(), data.draw(weight_configs(profile)))
    if weights is None:
        return
    done = converted(weights, data.draw(ptq_configs(profile)))
    assert done is None or problems(profile, done) == []


@pytest.mark.parametrize("profile", EXPORTERS, ids=str)
def test_what_a_profile_gives_both_take(profile: DeploymentProfile) -> None:
    """Its best config for PTQ passes `prepare` and the exporter; neither law above is about nothing."""
    done = converted(model(), profile.config(PTQConfig))
    assert done is not None
    assert problems(profile, done) == []


@pytest.mark.parametrize("profile", EXPORTERS, ids=str)
def test_presets_of_graphs_both_take(profile: DeploymentProfile) -> None:
    """Also as an exported graph."""
    graph = prepare(model(), profile.config(PT2EConfig), args=(X,), inplace=False)
    graph(X)
    assert problems(profile, convert(graph).eval()) == []
