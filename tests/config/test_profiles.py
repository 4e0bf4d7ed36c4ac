"""Deployment profiles: values that say what a runtime takes, and give configs that are legal."""

from __future__ import annotations

import attrs
import pytest

from tico_config import (
    INT4,
    INT8,
    UINT4,
    UINT8,
    AWQConfig,
    BaseConfig,
    BlockTuneConfig,
    CLEConfig,
    ConfigError,
    DeploymentProfile,
    DType,
    GPTQConfig,
    GridFormat,
    GridRule,
    HQQConfig,
    LayerFormat,
    LayerRule,
    PerChannel,
    PerGroup,
    PerToken,
    Problem,
    PT2EConfig,
    PTQConfig,
    QScheme,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    SuperBlock,
    affine,
    fingerprint,
    from_json,
    no_quant,
    profiles,
    to_json,
)

OWN = DeploymentProfile(
    name="vllm",  # the name of a built-in one, whose text it must not have
    runtime="A chip",
    layers=(LayerRule(name="W6", weights=GridRule(dtypes=(DType.int(6),), units=("tensor",))),),
)
ROWS = GridFormat(dtype=INT8, granularity=PerChannel(0), symmetric=True)
TOKENS = GridFormat(dtype=INT8, granularity=PerToken(), symmetric=True)
FUSED = ("q_proj", "k_proj", "v_proj")


def found(profile: DeploymentProfile, *layers: LayerFormat, **points: GridFormat) -> list[Problem]:
    """Return what the profile does not take."""
    return list(profile.problems(layers, points, "change it"))


def linear(weight: GridFormat | None, inputs: GridFormat | None = None, path: str = "fc") -> LayerFormat:
    """Return a linear layer of 64 rows and columns."""
    return LayerFormat(path=path, kind="linear", weight=weight, inputs=inputs, rows=64, columns=64)


@pytest.mark.parametrize(
    ("layer", "field", "words"),
    [
        (
            linear(attrs.evolve(ROWS, dtype=DType.int(3))),
            "dtype",
            "int4, uint4, int8 or fp8_e4m3, and",
        ),
        (linear(attrs.evolve(ROWS, symmetric=False)), "symmetric", "symmetric weights of int8, and"),
        (linear(attrs.evolve(ROWS, granularity=PerGroup(size=48))), "group_size", "128, 64 or 32 columns"),
        (linear(attrs.evolve(ROWS, granularity=PerGroup(size=32), even=False)), "groups", "neighbouring"),
        (linear(attrs.evolve(ROWS, dtype=INT4), TOKENS), "act_in", "float inputs"),
        (linear(ROWS, attrs.evolve(TOKENS, dtype=UINT8, symmetric=False)), "dtype", "activations of int8"),
        (LayerFormat(path="fc", kind="conv2d", weight=ROWS), "kind", "layers of kind linear"),
        (attrs.evolve(linear(attrs.evolve(ROWS, dtype=INT4)), rows=40), "shape", "multiples of 32"),
    ],
)
def test_a_misfit_names_the_property_and_what_is_legal(layer: LayerFormat, field: str, words: str) -> None:
    """One thing that vLLM does not take is one problem, which says what it takes in its place."""
    problem, *others = found(profiles.VLLM, layer)
    assert not [each for each in others if each.field == field]
    assert problem.field == field
    assert words in str(problem)


def test_everything_wrong_is_told_at_once() -> None:
    """Weight, inputs and other activations of several layers are in one list."""
    bad = linear(attrs.evolve(ROWS, dtype=DType.int(3)), attrs.evolve(TOKENS, dtype=UINT8), path="a")
    layers = bad, LayerFormat(path="b", kind="embedding", weight=ROWS)
    modules = [problem.module for problem in found(profiles.VLLM, *layers, c=TOKENS)]
    assert modules == ["a", "a.act_in", "b", "c"]


def test_layers_that_are_computed_as_one_need_one_format() -> None:
    """q, k and v are compared with each other where they stand beside each other, floats among them."""
    groups = attrs.evolve(ROWS, dtype=INT4, granularity=PerGroup(size=32))
    alike = [linear(groups, path=f"0.attn.{name}") for name in FUSED]
    other = [linear(ROWS, path=f"1.attn.{name}") for name in FUSED]
    assert found(profiles.VLLM, *alike, *other) == []
    (problem,) = found(profiles.VLLM, *alike[:2], linear(None, path="0.attn.v_proj"))
    assert problem.module == "0.attn"
    assert "q_proj, k_proj and v_proj as one layer" in str(problem)
    assert "v_proj: float" in str(problem)
    assert found(profiles.LLAMA_CPP, *alike[:2], linear(None, path="0.attn.v_proj")) == []


def test_a_format_may_stand_alone() -> None:
    """Packed zero points are taken where all layers have them; floats beside them do not count."""
    packed = [linear(attrs.evolve(ROWS, dtype=UINT4, symmetric=False), path=path) for path in "ab"]
    assert found(profiles.VLLM, *packed, linear(None, path="c")) == []
    wide = attrs.evolve(linear(ROWS, path="c"), inputs_known=False)
    assert [each.module for each in found(profiles.VLLM, *packed, wide)] == ["a", "b"]
    assert "W4A16 asymmetric only where all layers have it" in str(found(profiles.VLLM, *packed, wide)[0])


def test_layers_may_have_to_be_those_of_every_block() -> None:
    """One block less, a head, and a second format are named; blocks that are alike are taken."""
    four = attrs.evolve(ROWS, dtype=INT4)
    alike = [linear(four, path=f"h.{block}.{name}") for block in "01" for name in FUSED]
    assert found(profiles.GPTQMODEL, *alike, linear(None, path="head"), linear(None, path="h.0.up")) == []
    for others in ([linear(None, path="h.2.q_proj")], [linear(four, path="head")]):
        (problem,) = found(profiles.GPTQMODEL, *alike, *others)
        assert (problem.module, problem.field) == (None, "overrides")
        assert "the same layers in every block" in str(problem)
    mixed = [linear(ROWS, path=f"h.{block}.up") for block in "01"]
    assert "W8A16 only where all layers have it" in str(found(profiles.GPTQMODEL, *alike, *mixed)[-1])


def test_inputs_of_a_float_layer_are_an_activation_like_others() -> None:
    """Where no other activation has a place, they have none; elsewhere they are judged as such."""
    assert [each.module for each in found(profiles.VLLM, linear(None, TOKENS))] == ["fc.act_in"]
    assert found(profiles.ONNX_RUNTIME, linear(None, TOKENS)) == []
    assert [each.field for each in found(profiles.XNNPACK, linear(None, TOKENS))] == ["granularity"]


def test_what_is_not_known_is_not_judged() -> None:
    """An algorithm for weights leaves inputs to the next one; a graph does not know the kind of a layer."""
    assert [each.field for each in found(profiles.XNNPACK, linear(ROWS))] == ["act_in"]
    assert found(profiles.XNNPACK, attrs.evolve(linear(ROWS), inputs_known=False)) == []
    assert found(profiles.VLLM, LayerFormat(path="", weight=ROWS, inputs=TOKENS)) == []


@pytest.mark.parametrize(
    "config",
    [
        GPTQConfig,
        PTQConfig,
        AWQConfig,
        BlockTuneConfig,
        CLEConfig,
        HQQConfig,
        PT2EConfig,
        RotationConfig,
        ScaleTuneConfig,
        SmoothQuantConfig,
    ],
)
@pytest.mark.parametrize("profile", [profiles.CIRCLE, OWN])
def test_a_config_with_a_target_survives_json(config: type[BaseConfig], profile: DeploymentProfile) -> None:
    """A built-in profile stands there by its name, another as its value, also under a name that is taken."""
    made = config(target=profile)
    text = to_json(made)
    assert from_json(text) == made
    assert ('"named":"circle"' in text) == (profile is profiles.CIRCLE)
    assert fingerprint(made) != fingerprint(config())
    assert hash(made) == hash(from_json(text))


def test_a_name_that_no_profile_has_is_refused() -> None:
    """The error says which ones there are."""
    text = to_json(GPTQConfig(target=profiles.VLLM)).replace('"vllm"', '"triton"')
    with pytest.raises(ConfigError, match="vllm, llama_cpp") as caught:
        from_json(text)
    assert caught.value.field == "$.config.target.named"


def test_configs_have_the_fields_asked_for() -> None:
    """What is given holds; the rest is what the runtime takes together with it."""
    assert profiles.VLLM.config(GPTQConfig).target == profiles.VLLM
    assert profiles.VLLM.config(GPTQConfig, bits=8, act_order=True) == GPTQConfig(
        bits=8, symmetric=True, act_order=True, target=profiles.VLLM
    )
    static = profiles.VLLM.config(PTQConfig, activation=affine(INT8))
    assert (static.weight, static.scope) == (affine(INT8), "linear")
    for kind in (AWQConfig, BlockTuneConfig, HQQConfig):
        assert profiles.LLAMA_CPP.config(kind, symmetric=False).weight_format() == GridFormat(
            dtype=UINT4, granularity=PerGroup(size=128), symmetric=False
        )


def test_what_is_never_legal_is_refused_with_what_is() -> None:
    """No config of a class may fit, or none with these fields."""
    with pytest.raises(ConfigError, match=r"bits=3 is legal for vLLM; take bits=4 or bits=8"):
        profiles.VLLM.config(GPTQConfig, bits=3)
    with pytest.raises(ConfigError, match=r"PT2EConfig makes nothing that vLLM takes"):
        profiles.VLLM.config(PT2EConfig)
    with pytest.raises(ConfigError, match="the nearest is 'group_size'"):
        profiles.VLLM.config(GPTQConfig, groupsize=32)


def test_presets_are_what_profiles_give() -> None:
    """There is one table of what a runtime takes."""
    asymmetric = affine(INT8, QScheme.PER_TENSOR_ASYMM)
    assert PT2EConfig.xnnpack() == profiles.XNNPACK.config(PT2EConfig)
    assert (PT2EConfig.xnnpack().activation, PT2EConfig.xnnpack().weight) == (asymmetric, affine(INT8))
    assert PT2EConfig.xnnpack().operators["softmax"] == no_quant()
    assert (PT2EConfig.circle().weight, PT2EConfig.circle().bias) == (affine(UINT8), no_quant())
    assert (PT2EConfig.onnx_runtime().activation, PT2EConfig.onnx_runtime().weight) == (
        affine(UINT8),
        affine(INT8),
    )


def test_overrides_change_no_target() -> None:
    """A model runs on one runtime."""
    with pytest.raises(ConfigError, match="target"):
        GPTQConfig(overrides={"*.fc": {"target": profiles.VLLM}})


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"dtypes": ()}, "dtypes"),
        ({"units": ("row",)}, "units"),
        ({"group_sizes": (0,)}, "group_sizes"),
        ({"symmetric": 1}, "symmetric"),
    ],
)
def test_a_rule_of_ones_own_is_checked(change: dict[str, object], field: str) -> None:
    """A field with another value is a ConfigError that names it."""
    with pytest.raises(ConfigError) as caught:
        GridRule(**{"dtypes": (INT8,), **change})  # type: ignore[arg-type]  # that is the point
    assert caught.value.field == field


def test_a_layer_that_could_read_nothing_is_refused() -> None:
    """Without formats of inputs it has to read floats."""
    with pytest.raises(ConfigError, match="alone"):
        LayerRule(name="W8", weights=GridRule(dtypes=(INT8,)), alone=False)


def test_scales_under_super_blocks_are_asked_for_by_a_profile() -> None:
    """Groups of 16 share super-blocks in llama.cpp; a rule that asks for no sharing takes them too."""
    config = profiles.LLAMA_CPP.config(GPTQConfig, bits=6, group_size=16)
    assert config.super_block == SuperBlock(columns=256, scale_bits=7)
    assert from_json(to_json(config)) == config
    assert str(config.weight_format()).endswith("groups of 16, scales of 7 bits under super-blocks of 256")
    bare, shared = GridFormat(dtype=INT8, granularity=PerGroup(size=16), symmetric=True), SuperBlock()
    rule = GridRule(dtypes=(INT8,), units=("group",))
    strict = attrs.evolve(rule, super_block=shared)
    assert rule.takes(attrs.evolve(bare, super_block=shared))
    assert strict.takes(attrs.evolve(bare, super_block=shared))
    assert not strict.takes(bare)
    with pytest.raises(ConfigError, match="scale_bits"):
        SuperBlock(scale_bits=9)


@pytest.mark.parametrize("bits", [4, 5])
def test_offsets_under_super_blocks_are_asked_for_by_a_profile(bits: int) -> None:
    """Only a rule that speaks of offsets takes them: a writer of zero points would drop them."""
    shared = SuperBlock(offset_bits=6)
    configs = [each for each in profiles.LLAMA_CPP.configs(GPTQConfig) if each.super_block == shared]
    [config] = [each for each in configs if each.bits == bits]
    assert (config.group_size, config.symmetric) == (32, False)
    assert from_json(to_json(config)) == config
    asked = config.weight_format()
    assert str(asked).endswith(
        "groups of 32, scales of 6 bits and offsets of 6 bits under super-blocks of 256"
    )
    rule = GridRule(dtypes=(asked.dtype,), symmetric=False, units=("group",))
    assert rule.takes(attrs.evolve(asked, super_block=None))
    assert not rule.takes(asked)
    assert attrs.evolve(rule, super_block=shared).takes(asked)
    for profile in (profiles.VLLM, profiles.ONNX_RUNTIME, profiles.OPENVINO):
        layer = LayerFormat(path="fc", kind="linear", weight=asked, rows=256, columns=256)
        assert not any(each.takes(layer) for each in profile.layers)


def test_super_blocks_without_offsets_have_the_json_of_earlier_releases() -> None:
    """So the fingerprint of a config stays what it was."""
    text = to_json(GPTQConfig(group_size=16, symmetric=True, super_block=SuperBlock()))
    assert "offset_bits" not in text
    assert from_json(text).super_block == SuperBlock(offset_bits=None)  # type: ignore[attr-defined]  # GPTQ's
    with pytest.raises(ConfigError, match="offset_bits"):
        SuperBlock(offset_bits=0)
