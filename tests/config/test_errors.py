"""The text of an error: one sentence for one problem, a short list for several."""

from __future__ import annotations

import copy
import pickle

import attrs
import pytest

from tico_config import ArtifactError, ConfigError, Found, GPTQConfig, PercentileSpec, Problem, TicoError

LAYERS = [f"model.layers.{index}.mlp.down_proj" for index in range(24)]


def same_kind(modules: list[str]) -> list[Problem]:
    """Return one problem for each of `modules`, all of one kind."""
    expected, remedy = "a divisor of the 60 columns", "take a divisor, or allow ragged_groups"
    return [
        Problem(module=module, field="group_size", value=128, expected=expected, remedy=remedy)
        for module in modules
    ]


def test_one_problem_is_one_sentence() -> None:
    """The template names the module, the field, what was expected, what was got and what to do."""
    (problem,) = same_kind(["fc"])
    assert str(TicoError(problem)) == (
        "fc: group_size must be a divisor of the 60 columns, got 128; take a divisor, or allow ragged_groups."
    )


def test_a_sentence_stands_in_the_place_of_the_template() -> None:
    """Module and remedy stay around it, and the attributes are what they are without it."""
    plain = Problem(
        module="fc", field="model", value=Found("one that is not"), expected="prepared", remedy="prepare it"
    )
    error = TicoError(attrs.evolve(plain, sentence="the model is not prepared"))
    assert str(error) == "fc: the model is not prepared; prepare it."
    assert (error.module, error.field, error.value) == ("fc", "model", "one that is not")
    assert error.expected == "prepared"


def test_a_sentence_of_a_part_says_where_the_part_is() -> None:
    """What is wrong inside an override is told with the override, whoever worded it."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(overrides={"a": {"observer": {"steps": 1}, "overrides": {}}})
    assert caught.value.field == "overrides['a']"
    assert str(caught.value).startswith("overrides['a'] names 'overrides', which is no field")


def test_two_problems_are_a_list() -> None:
    """A line each, below their number."""
    with pytest.raises(ConfigError) as caught:
        GPTQConfig(bits=1, damping=0)
    assert str(caught.value).splitlines() == [
        "2 problems:",
        "- bits must be an integer from 2 to 8, got 1.",
        "- damping must be a number above 0 and at most 1, got 0.0.",
    ]


def test_24_problems_of_one_kind_are_four_lines() -> None:
    """The first two are spelt out, the others are counted, and a few of their paths named."""
    error = TicoError(*same_kind(LAYERS))
    head, one, two, rest = str(error).splitlines()
    assert head == "24 problems:"
    assert one.startswith(f"- {LAYERS[0]}: group_size")
    assert two.startswith(f"- {LAYERS[1]}: group_size")
    assert rest == f"  and 22 more of the same kind: {', '.join(LAYERS[2:5])}, …"
    assert len(str(error)) < 500


def test_a_path_inside_the_remedy_is_no_difference() -> None:
    """The remedy may name the module; it is one kind of problem all the same."""
    error = TicoError(
        *(
            Problem(module=path, value=Found("Gate"), expected="a wrapper", remedy=f"leave {path!r} float")
            for path in LAYERS
        )
    )
    assert len(str(error).splitlines()) == 4
    assert f"leave {LAYERS[1]!r} float" in str(error)


def test_three_of_a_kind_are_spelt_out() -> None:
    """Counting them would not be shorter."""
    text = str(TicoError(*same_kind(LAYERS[:3])))
    assert "more" not in text
    assert [line for line in text.splitlines() if line.startswith("- ")] == text.splitlines()[1:]


def test_kinds_keep_their_order_and_are_not_mixed() -> None:
    """Two kinds that alternate are two groups, in the order of their first problems."""
    other = [Problem(module=path, field="weight", value=Found("NaN"), expected="finite") for path in LAYERS]
    mixed = [problem for pair in zip(other, same_kind(LAYERS), strict=True) for problem in pair]
    lines = str(TicoError(*mixed)).splitlines()
    words = [line.strip().split(" ", 3)[2] for line in lines[1:]]
    assert words == ["weight", "weight", "more", "group_size", "group_size", "more"]


def test_problems_without_a_module_are_counted_too() -> None:
    """There is no path to name."""
    text = str(TicoError(*[Problem(field="x", value=1, expected="2")] * 5))
    assert text.splitlines()[-1] == "  and 3 more of the same kind"


def test_a_thousand_different_problems_are_a_short_list() -> None:
    """Kinds beyond the first two dozen are counted."""
    error = TicoError(*(Problem(field=f"f{at}", value=at, expected="0") for at in range(1000)))
    lines = str(error).splitlines()
    assert (lines[0], len(lines)) == ("1000 problems:", 26)
    assert lines[-1] == "and 976 more of other kinds"
    assert len(error.problems) == 1000


def test_errors_survive_copies() -> None:
    """A process can hand one to another: the problems and the text are the same."""
    error = ArtifactError(*same_kind(LAYERS))
    for again in (copy.copy(error), pickle.loads(pickle.dumps(error))):  # noqa: S301  # its own pickle
        assert isinstance(again, ArtifactError)
        assert (again.problems, str(again)) == (error.problems, str(error))


def test_long_sentences_are_cut() -> None:
    """A sentence that quotes a huge input does not make a huge message."""
    assert len(str(Problem(expected="less", sentence="x" * 10**6))) < 11_000


def test_values_without_a_text_do_not_spoil_the_error() -> None:
    """Python refuses to print an integer of five thousand digits."""
    assert (
        str(Problem(expected="less", value=10**5000))
        == "expected less, got a value of type int that cannot be shown"
    )


def test_ranges_are_said_in_english() -> None:
    """An open end is "above" or "below", a closed one "at most"."""
    with pytest.raises(ConfigError, match=r"^lower must be a number from 0 to 100, got -1\.0\.$"):
        PercentileSpec(lower=-1)
    with pytest.raises(ConfigError, match=r"^asymmetric must be a number from 0 to 1, got 2\.0\.$"):
        GPTQConfig(asymmetric=2)
