"""The law of regular expressions in overrides: they mean what they mean in Python."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from tico_config import Rule, pattern_problems

PARTS = st.sampled_from(
    ["a", "b", ".", r"\.", r"\w", r"\d", "[ab]", "[^a]", "[0-5x]", "^", "$", r"\b", r"\Z", "1"]
)
BEHIND = st.sampled_from(["(?<=a)", "(?<!ab)", "(?<=[ab]1)", r"(?<!\.)"])
PATHS = st.text(alphabet="abAB.15_\n", max_size=9)


def _grown(parts: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    """Return expressions made of smaller ones."""
    repeats = st.sampled_from(["*", "+", "?", "*?", "+?", "{2}", "{1,3}", "{0,2}?"])
    return st.one_of(
        st.tuples(parts, parts).map("".join),
        st.tuples(parts, parts).map(lambda two: f"(?:{two[0]}|{two[1]})"),
        st.tuples(parts, repeats).map(lambda two: f"({two[0]}){two[1]}"),
        st.tuples(st.sampled_from(["(?=", "(?!", "(?i:"]), parts).map(lambda two: f"{two[0]}{two[1]})"),
    )


EXPRESSIONS = st.recursive(PARTS | BEHIND, _grown, max_leaves=6)


@given(EXPRESSIONS, PATHS)
def test_expressions_mean_what_they_mean_in_python(expression: str, path: str) -> None:
    """A rule matches where `re.fullmatch` does, as far as its repeats are not nested too deeply."""
    problems = pattern_problems([f"re:{expression}"])
    if problems:
        assert "nested more than 3 deep" in str(problems[0])
    else:
        assert Rule(f"re:{expression}").matches(path) == (re.fullmatch(expression, path) is not None)
