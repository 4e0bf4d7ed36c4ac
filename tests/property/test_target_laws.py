"""What `prepare` takes for a target, the exporter of that target takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

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
    SuperBlock,
    UnsupportedError,
    affine,
    no_quant,
    profiles,
)
from tico_export import (
    GGUF,
    CompressedTensors,
    ExecuTorch,
    ExporterEntry,
    ExportTarget,
    GPTQFormat,
    Onnx,
    OpenVINO,
    Source,
)
from tico_export.formats import (
    COMPRESSED_TENSORS_ENTRY,
    EXECUTORCH_ENTRY,
    GGUF_ENTRY,
    GPTQ_FORMAT_ENTRY,
    ONNX_ENTRY,
    OPENVINO_ENTRY,
    PT2,
    PT2_ENTRY,
)

GRAPHS: Final[Mapping[DeploymentProfile, tuple[ExporterEntry, ExportTarget]]] = {
    profiles.ONNX_RUNTIME: (ONNX_ENTRY, Onnx()),
    profiles.OPENVINO: (OPENVINO_ENTRY, OpenVINO()),
    profiles.XNNPACK: (EXECUTORCH_ENTRY, ExecuTorch()),
    profiles.CIRCLE: (PT2_ENTRY, PT2(dialect="circle")),
}
SERVERS: Final[Mapping[DeploymentProfile, tuple[ExporterEntry, ExportTarget]]] = {
    profiles.VLLM: (COMPRESSED_TENSORS_ENTRY, CompressedTensors()),
    profiles.LLAMA_CPP: (GGUF_ENTRY, GGUF(tokenizer=False)),
    # Its first version refuses zero points of 0, which no config tells beforehand.
    profiles.GPTQMODEL: (GPTQ_FORMAT_ENTRY, GPTQFormat(version=2)),
}
EXPORTERS: Final = {**GRAPHS, **SERVERS}


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


def residual() -> nn.Module:
    """Return the same small model every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Residual().eval()


def llama(*, inner: int = 64, tied: bool = False, hidden: int = 32) -> nn.Module:
    """Return a language model of one layer with `inner` columns in its widest, the same every time."""
    config = LlamaConfig(
        vocab_size=40,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16,
        tie_word_embeddings=tied,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LlamaForCausalLM(config)
    nn.Module.eval(made)
    return made


@attrs.frozen(eq=False, kw_only=True)
class Subject:
    """What a profile is tried with: models, an input, sizes of groups, and paths that overrides may name."""

    models: tuple[Callable[[], nn.Module], ...]
    x: Tensor
    sizes: tuple[int, ...]
    paths: tuple[str, ...]


STACK: Final = Subject(
    models=(residual,),
    x=torch.linspace(-1, 1, 96).view(2, 48),
    sizes=(16, 12, 48),
    paths=("first", "first.act_in", "norm", "norm.act_out", "last.weight", "*.act_in", "*"),
)
# A tied head, and 48 columns, which are no blocks of 32.
TEXT: Final = Subject(
    models=(llama, lambda: llama(tied=True), lambda: llama(inner=48)),
    x=torch.arange(16).view(2, 8),
    sizes=(32, 16, 48),
    paths=("*.down_proj", "*.q_proj.weight", "*_proj.act_in", "lm_head", "*.embed_tokens", "*.mlp.*", "*"),
)


def subject_of(profile: DeploymentProfile) -> Subject:
    """Return a language model for what serves them, else layers of any kind."""
    return TEXT if profile in SERVERS else STACK


dtypes = st.builds(DType, st.sampled_from([2, 3, 4, 5, 6, 7, 8, 16]), st.booleans())
activation_units: st.SearchStrategy[Granularity | None] = st.sampled_from([None, PerToken(), PerChannel(-1)])


def weight_units(sizes: tuple[int, ...]) -> st.SearchStrategy[Granularity | None]:
    """Draw what shares a scale."""
    groups = [PerGroup(size=size) for size in sizes]
    return st.sampled_from([None, PerTensor(), PerChannel(0), *groups])


@st.composite
def specs(draw: st.DrawFn, units: st.SearchStrategy[Granularity | None]) -> QuantSpec:
    """Draw a spec of integers, or none."""
    dtype, unit = draw(dtypes), draw(units)
    wide = isinstance(unit, PerChannel | PerGroup)
    scheme = QScheme.PER_CHANNEL_ASYMM if wide else QScheme.PER_TENSOR_ASYMM
    chosen = draw(st.none() | st.just(scheme)) if unit is not None else None
    return draw(st.just(affine(dtype, chosen, granularity=unit)) | st.just(no_quant()))


def changes(subject: Subject) -> st.SearchStrategy[dict[str, QuantSpec]]:
    """Draw a few exceptions, of activations or of weights."""
    anything = specs(activation_units) | specs(weight_units(subject.sizes))
    return st.dictionaries(st.sampled_from(subject.paths), anything, max_size=2)


@st.composite
def ptq_configs(draw: st.DrawFn, profile: DeploymentProfile, subject: Subject) -> PTQConfig:
    """Draw a config that the profile gives, or any, with a few exceptions."""
    near = draw(st.sampled_from(profile.configs(PTQConfig)))
    anything = PTQConfig(
        weight=draw(specs(weight_units(subject.sizes))),
        activation=draw(st.just(no_quant()) | specs(activation_units)),
        target=profile,
    )
    base = near if draw(st.integers(0, 2)) else anything
    overrides = draw(changes(subject))
    return attrs.evolve(base, overrides=overrides, scope=draw(st.sampled_from(["all", "linear"])))


@st.composite
def weight_configs(draw: st.DrawFn, profile: DeploymentProfile, subject: Subject) -> BaseConfig:
    """Draw a config of an algorithm for weights; of the slower one for layers alone."""
    bits, size = draw(st.integers(2, 8)), draw(st.sampled_from([None, *subject.sizes]))
    symmetric, ragged = draw(st.booleans()), draw(st.booleans())
    kinds: list[type[GPTQConfig | AWQConfig]] = [GPTQConfig] if subject is TEXT else [GPTQConfig, AWQConfig]
    return draw(st.sampled_from(kinds))(
        bits=bits,
        group_size=size,
        symmetric=symmetric,
        ragged_groups=ragged,
        show_progress=False,
        target=profile,
    )


def converted(start: nn.Module, config: BaseConfig, x: Tensor) -> nn.Module | None:
    """Return a model quantized by a config; None where `prepare` refuses it."""
    try:
        prepared = prepare(start, config, args=(x,))
    except (ConfigError, UnsupportedError):
        return None
    with torch.no_grad():
        prepared(x)
    return convert(prepared).eval()


def problems(profile: DeploymentProfile, done: nn.Module) -> list[str]:
    """Return what the exporter of the target finds wrong."""
    entry, target = EXPORTERS[profile]
    return list(map(str, entry.make(target).every_problem(Source.read(done))))


@given(st.sampled_from(list(EXPORTERS)), st.data())
def test_what_prepare_takes_of_ptq_the_exporter_takes(
    profile: DeploymentProfile, data: st.DataObject
) -> None:
    """Accepted by `prepare` = nothing wrong for the exporter."""
    subject = subject_of(profile)
    start = data.draw(st.sampled_from(subject.models))()
    done = converted(start, data.draw(ptq_configs(profile, subject)), subject.x)
    assert done is None or problems(profile, done) == []


@given(st.sampled_from(list(EXPORTERS)), st.data())
def test_what_prepare_takes_one_after_the_other_the_exporter_takes(
    profile: DeploymentProfile, data: st.DataObject
) -> None:
    """Weights first, then activations: what the second `prepare` takes is what the file will hold."""
    subject = subject_of(profile)
    start = data.draw(st.sampled_from(subject.models))()
    weights = converted(start, data.draw(weight_configs(profile, subject)), subject.x)
    if weights is None:
        return
    done = converted(weights, data.draw(ptq_configs(profile, subject)), subject.x)
    assert done is None or problems(profile, done) == []


@given(
    st.sampled_from(list(EXPORTERS)),
    st.integers(3, 6),
    st.sampled_from([16, 32]),
    st.sampled_from([5, 6, 7]),
    st.none() | st.sampled_from([5, 6, 7]),
)
def test_what_prepare_takes_of_super_blocks_the_exporter_takes(
    profile: DeploymentProfile, bits: int, size: int, scale_bits: int, offset_bits: int | None
) -> None:
    """Near the types of llama.cpp: what it has no place for, and offsets elsewhere, `prepare` refuses."""
    subject = subject_of(profile)
    start = llama(hidden=256, inner=256) if subject is TEXT else residual()
    shared = SuperBlock(
        columns=256 if subject is TEXT else 48, scale_bits=scale_bits, offset_bits=offset_bits
    )
    config = GPTQConfig(
        bits=bits,
        group_size=size if subject is TEXT else 16,
        symmetric=offset_bits is None,
        super_block=shared,
        show_progress=False,
        target=profile,
    )
    done = converted(start, config, subject.x)
    assert done is None or problems(profile, done) == []
    assert done is None or offset_bits is None or profile is profiles.LLAMA_CPP


def unit_size(config: PTQConfig) -> int | None:
    """Return the size of the groups of weights, if there are any."""
    unit = config.weight.granularity
    return unit.size if isinstance(unit, PerGroup) else None


@pytest.mark.parametrize("profile", EXPORTERS, ids=str)
def test_what_a_profile_gives_both_take(profile: DeploymentProfile) -> None:
    """Its best config for PTQ passes `prepare` and the exporter; neither law above is about nothing."""
    subject, given_configs = subject_of(profile), profile.configs(PTQConfig)
    fitting = [each for each in given_configs if unit_size(each) in (None, *subject.sizes)]
    done = converted(subject.models[0](), fitting[0], subject.x)
    assert done is not None
    assert problems(profile, done) == []


@pytest.mark.parametrize("profile", GRAPHS, ids=str)
def test_presets_of_graphs_both_take(profile: DeploymentProfile) -> None:
    """Also as an exported graph."""
    graph = prepare(residual(), profile.config(PT2EConfig), args=(STACK.x,), inplace=False)
    graph(STACK.x)
    assert problems(profile, convert(graph).eval()) == []
