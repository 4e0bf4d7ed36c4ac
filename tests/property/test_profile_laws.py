"""Deployment profiles: no problem exactly where a rule fits, and every config that they give is legal."""

from __future__ import annotations

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tico_config import (
    DeploymentProfile,
    DType,
    GPTQConfig,
    Granularity,
    GridFormat,
    GridRule,
    LayerFormat,
    LayerRule,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    PTQConfig,
    SmoothQuantConfig,
    affine,
    from_json,
    profiles,
    to_json,
)

dtypes = st.sampled_from([DType(bits, signed=signed) for bits in (4, 8) for signed in (True, False)])
sizes = st.sampled_from([32, 48, 64])
units: st.SearchStrategy[Granularity] = st.one_of(
    st.builds(PerTensor), st.builds(PerChannel), st.builds(PerToken), st.builds(PerGroup, size=sizes)
)
grids = st.builds(
    GridFormat, dtype=dtypes, granularity=units, symmetric=st.booleans() | st.none(), even=st.booleans()
)
unit_names = st.sampled_from(["tensor", "channel", "group", "token"])
grid_rules = st.builds(
    GridRule,
    dtypes=st.lists(dtypes, min_size=1, max_size=3).map(tuple),
    symmetric=st.booleans() | st.none(),
    units=st.lists(unit_names, min_size=1, max_size=3).map(tuple),
    group_sizes=st.lists(sizes, max_size=2).map(tuple),
    group_multiple=st.sampled_from([1, 32]),
)
kinds = st.sampled_from(["linear", "conv2d"])


@st.composite
def layer_rules(draw: st.DrawFn) -> LayerRule:
    """Draw any rule of a layer."""
    inputs = draw(st.none() | grid_rules)
    return LayerRule(
        name="any",
        kinds=draw(st.lists(kinds, max_size=2).map(tuple)),
        weights=draw(grid_rules),
        inputs=inputs,
        alone=inputs is None or draw(st.booleans()),
        multiple=draw(st.sampled_from([1, 32])),
    )


own_profiles = st.builds(
    DeploymentProfile,
    name=st.sampled_from(["vllm", "own"]),
    runtime=st.just("A chip"),
    layers=st.lists(layer_rules(), max_size=3).map(tuple),
    points=st.lists(grid_rules, max_size=2).map(tuple),
    fused=st.sampled_from([(), (("q", "k"), ("up", "gate"))]),
)
any_profiles = own_profiles | st.sampled_from(list(profiles.BUILT_IN.values()))
layers = st.builds(
    LayerFormat,
    path=st.just("fc"),
    kind=kinds | st.none(),
    weight=grids,
    inputs=grids | st.none(),
    inputs_known=st.booleans(),
    rows=st.sampled_from([None, 32, 40]),
    columns=st.sampled_from([None, 64, 24]),
)


def takes(rule: LayerRule, layer: LayerFormat) -> bool:
    """Return whether a rule takes a layer, by the definition of its fields."""
    if layer.weight is None or not rule.weights.takes(layer.weight):
        return False
    if layer.kind is not None and rule.kinds and layer.kind not in rule.kinds:
        return False
    if any(side is not None and side % rule.multiple for side in (layer.rows, layer.columns)):
        return False
    if not layer.inputs_known:
        return True
    if layer.inputs is None:
        return rule.alone
    return rule.inputs is not None and rule.inputs.takes(layer.inputs)


@given(any_profiles, layers)
def test_a_layer_is_refused_exactly_where_no_rule_takes_it(
    profile: DeploymentProfile, layer: LayerFormat
) -> None:
    """No problems = some rule takes weight, shape and inputs together; where it stands is another law."""
    profile = attrs.evolve(profile, in_blocks=False)
    problems = list(profile.problems([layer], {}, "change it"))
    assert (not problems) == any(takes(rule, layer) for rule in profile.layers)
    assert [rule.takes(layer) for rule in profile.layers] == [takes(rule, layer) for rule in profile.layers]
    assert all(str(problem).endswith("; change it") and problem.expected for problem in problems)


@given(any_profiles, grids)
def test_an_activation_is_refused_exactly_where_no_rule_takes_it(
    profile: DeploymentProfile, grid: GridFormat
) -> None:
    """No problems = some rule for activations takes it."""
    problems = list(profile.problems([], {"add.act_out": grid}, "change it"))
    assert (not problems) == any(rule.takes(grid) for rule in profile.points)


@given(any_profiles)
def test_profiles_survive_json(profile: DeploymentProfile) -> None:
    """from_json(to_json(c)) = c for a config with any target, and the text is canonical."""
    for config in (GPTQConfig(target=profile), PTQConfig(target=profile), SmoothQuantConfig(target=profile)):
        text = to_json(config)
        assert from_json(text) == config
        assert to_json(from_json(text)) == text


def asked(weight: GridFormat | None, inputs: GridFormat | None, *, known: bool) -> LayerFormat:
    """Return a linear layer whose sides any kernel takes."""
    return LayerFormat(
        path="fc", kind="linear", weight=weight, inputs=inputs, inputs_known=known, rows=256, columns=256
    )


@pytest.mark.parametrize("profile", profiles.BUILT_IN.values(), ids=str)
def test_every_config_that_a_profile_gives_is_legal(profile: DeploymentProfile) -> None:
    """What it asks of a linear layer, wherever that is, and of activations with a place, is no problem."""
    profile = attrs.evolve(profile, in_blocks=False)
    given_configs = profile.configs(GPTQConfig)
    for config in given_configs:
        layer = asked(config.weight_format(), None, known=False)
        assert list(profile.problems([layer], {}, "")) == []
    for spec in profile.configs(PTQConfig):
        inputs = GridFormat.of(spec.activation, PerTensor())
        layer = asked(GridFormat.of(spec.weight, PerChannel(0)), inputs, known=True)
        points = {"add": inputs} if inputs is not None and spec.scope == "all" else {}
        assert list(profile.problems([layer], points, "")) == []
    assert len(set(given_configs)) == len(given_configs)


@given(own_profiles, dtypes)
def test_own_profiles_give_legal_configs_too(profile: DeploymentProfile, dtype: DType) -> None:
    """Also where rules contradict what can be asked for, all that is given is legal."""
    for choice in PTQConfig.choices_for(profile):
        spec = attrs.evolve(PTQConfig(weight=affine(dtype)), **choice)  # type: ignore[arg-type]  # its fields
        inputs = GridFormat.of(spec.activation, PerTensor())
        layer = asked(GridFormat.of(spec.weight, PerChannel(0)), inputs, known=True)
        rules = [rule for rule in profile.layers if takes(rule, layer)]
        assert rules
