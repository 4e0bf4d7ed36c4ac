"""Overrides: which rule wins, and what is wrong with rules that cannot be meant."""

from __future__ import annotations

import pytest

from tico_config import (
    ConfigError,
    DType,
    GPTQConfig,
    PTQConfig,
    affine,
    no_quant,
    unmatched_problems,
)

INT16 = affine(DType.int(16))
PATH = "model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    "pattern",
    [
        PATH,
        "*.q_proj",
        "model.layers.?.self_attn.q_proj",
        "model.*",
        "re:.*q_proj",
        r"re:model\.layers\.\d+\..*",
    ],
)
def test_module_patterns_hold_for_every_point_of_the_module(pattern: str) -> None:
    """A rule for a module is a rule for its observers, whatever kind of pattern it is."""
    config = PTQConfig(overrides={pattern: INT16})
    for point in ("act_in", "act_out", "weight"):
        resolution = config.resolve(f"{PATH}.{point}")
        assert (resolution.spec, resolution.origin) == (INT16, f"overrides[{pattern!r}]")


@pytest.mark.parametrize("pattern", [f"{PATH}.act_out", "*.q_proj.act_out", "re:.*act_out"])
def test_observer_patterns_hold_for_that_point_only(pattern: str) -> None:
    """The other points of the module keep the default."""
    config = PTQConfig(overrides={pattern: INT16})
    assert config.resolve(f"{PATH}.act_out").spec == INT16
    assert config.resolve(f"{PATH}.act_in").origin == "activation"


def test_longer_globs_beat_shorter_ones() -> None:
    """Among globs, the one with more literal characters is the more specific."""
    config = PTQConfig(overrides={"*.q_proj": INT16, "*.0.*.q_proj": no_quant()})
    assert config.resolve(f"{PATH}.weight").origin == "overrides['*.0.*.q_proj']"


def test_equally_specific_rules_that_differ_are_refused() -> None:
    """The error names both rules and the path."""
    config = PTQConfig(overrides={"re:.*q_proj": INT16, "re:model.*": no_quant()})
    with pytest.raises(ConfigError) as caught:
        config.resolve(f"{PATH}.weight")
    assert caught.value.module == f"{PATH}.weight"
    assert caught.value.field == "overrides"
    assert "re:.*q_proj" in str(caught.value)
    assert "re:model.*" in str(caught.value)


def test_equally_specific_rules_that_agree_are_one() -> None:
    """Saying the same twice is no contradiction."""
    config = PTQConfig(overrides={"re:.*q_proj": INT16, "re:model.*": INT16})
    assert config.resolve(f"{PATH}.weight").spec == INT16


def test_partial_rules_change_some_fields() -> None:
    """What a mapping does not name keeps its default."""
    config = PTQConfig(activation=affine(DType.uint(8)), overrides={"*.q_proj": {"dtype": DType.uint(4)}})
    assert config.resolve(f"{PATH}.act_in").spec == affine(DType.uint(4))
    gptq = GPTQConfig(symmetric=True, overrides={"*.q_proj": {"bits": 8}}).resolve(PATH)
    assert (gptq.spec.bits, gptq.spec.symmetric, gptq.origin) == (8, True, "overrides['*.q_proj']")


@pytest.mark.parametrize(
    ("overrides", "field"),
    [
        ({"a": {"bit": 8}}, "overrides['a']"),
        ({"a": {"bits": 99}}, "overrides['a'].bits"),
        ({"a": {}}, "overrides['a']"),
        ({"a": 8}, "overrides['a']"),
        ({"a": {"show_progress": False}}, "overrides['a']"),
        ({"re:(": {"bits": 8}}, "overrides"),
        ({"": {"bits": 8}}, "overrides"),
    ],
)
def test_rules_that_cannot_hold_are_refused_at_construction(overrides: dict[str, object], field: str) -> None:
    """The field leads to the rule and to the part of it that is wrong."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(overrides=overrides)
    assert caught.value.field == field


def test_misspelt_fields_are_answered_with_the_nearest() -> None:
    """A typing error is one word away from its correction."""
    with pytest.raises(ConfigError, match="the nearest is 'group_size'"):
        GPTQConfig(overrides={"a": {"groupsize": 8}})


def test_rules_without_a_match_are_answered_with_the_nearest_paths() -> None:
    """Up to three real paths are suggested, the nearest first."""
    paths = ["model.layers.0.mlp.up_proj", "model.layers.0.mlp.down_proj", "lm_head"]
    (problem,) = unmatched_problems(["*.up_proj", "model.layers.0.mlp.dwn_proj"], paths)
    assert problem.field == "overrides"
    assert problem.value == "model.layers.0.mlp.dwn_proj"
    assert problem.remedy is not None
    assert problem.remedy.startswith("the nearest paths are 'model.layers.0.mlp.down_proj'")
