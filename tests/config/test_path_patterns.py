"""Regular expressions in overrides: Python's meaning, in a time that the length of the path bounds."""

from __future__ import annotations

import time

import pytest

from tico_config import ConfigError, GPTQConfig, Rule, SmoothQuantConfig

EXPENSIVE = [
    ("(a+)+$", "a" * 60 + "!", False),
    ("(a|aa)+$", "a" * 60 + "b", False),
    ("(a|a)*", "a" * 60, True),
    ("(.*)*x", "a" * 200, False),
    (".*" * 12 + "x", "a" * 200, False),
    ("((a*)*)*b", "a" * 200, False),
    ("(?:(?:a?b?c?)+)+d", "abc" * 60, False),
    ("a{1000000000}", "a" * 100, False),
    ("(a?){1000000000}", "a" * 100, True),
    ("(?=(a+)+$)a*b", "a" * 60 + "b", False),
]


@pytest.mark.parametrize(
    ("expression", "path", "matches"), EXPENSIVE, ids=[case[0][:20] for case in EXPENSIVE]
)
def test_no_expression_backtracks(expression: str, path: str, matches: bool) -> None:
    """Python's own matcher needs hours or a lifetime for these."""
    start = time.process_time()
    config = GPTQConfig(overrides={f"re:{expression}": {"bits": 8}})
    assert (config.resolve(path).spec.bits == 8) is matches
    assert time.process_time() - start < 1


@pytest.mark.parametrize(
    ("expression", "reason"),
    [
        (r"(a)\1", "backreference"),
        ("(?>a+)a", "atomic group"),
        ("a++", "possessive repeat"),
        ("(a)?(?(1)b|c)", "backreference"),
        ("((((a*)*)*)*)*b", "more than 3 deep"),
        ("(" * 10_000 + ")" * 10_000, "nested too deeply"),
        ("a{99999999999999999999}", "repetition number is too large"),
    ],
)
def test_what_only_backtracking_can_match_is_refused(expression: str, reason: str) -> None:
    """At construction, in every field that has patterns."""
    with pytest.raises(ConfigError, match=reason) as caught:
        GPTQConfig(overrides={f"re:{expression}": {"bits": 8}})
    assert caught.value.field == "overrides"
    with pytest.raises(ConfigError, match=reason) as caught:
        SmoothQuantConfig(mappings={"norm": [f"re:{expression}"]})
    assert caught.value.field == "mappings"


def test_many_paths_are_matched_in_time() -> None:
    """A thousand paths of a deep model take a fraction of a second."""
    rule = Rule(r"re:model\.layers\.(\d+)\.(self_attn|mlp)\..*_proj")
    start = time.process_time()
    assert all(rule.matches(f"model.layers.{index}.mlp.down_proj") for index in range(1000))
    assert time.process_time() - start < 2
