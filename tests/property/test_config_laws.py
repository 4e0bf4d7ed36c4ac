"""Configs: exact JSON, canonical text, frozen values, and overrides that have one winner."""

from __future__ import annotations

import copy
import json
import pickle
import random
import re
from collections.abc import Mapping
from typing import ClassVar, Literal

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tico_config import (
    INT32,
    AWQConfig,
    BaseConfig,
    ConfigError,
    DType,
    FrozenMapping,
    GPTQConfig,
    ModuleConfig,
    Problem,
    PT2EConfig,
    PTQConfig,
    RotationConfig,
    SmoothQuantConfig,
    SpecConfig,
    TicoError,
    affine,
    fingerprint,
    from_json,
    no_quant,
    register_config,
    to_json,
    winning_rule,
)
from tico_config.validation import as_float, freeze
from tico_observers.testing import quant_specs

MALFORMED = 10_000

words = st.text(alphabet="abcxyz_é", min_size=1, max_size=4)
paths = st.lists(words, min_size=1, max_size=4).map(".".join)
exact_bits = st.dictionaries(paths, st.integers(2, 8).map(lambda bits: {"bits": bits}), max_size=4)


@st.composite
def gptq_configs(draw: st.DrawFn) -> GPTQConfig:
    """Draw any config of GPTQ."""
    return GPTQConfig(
        bits=draw(st.integers(2, 8)),
        group_size=draw(st.none() | st.integers(1, 4096)),
        symmetric=draw(st.booleans()),
        act_order=draw(st.booleans()),
        damping=draw(st.floats(0.0, 1.0, exclude_min=True)),
        token_weights=draw(st.sampled_from(("auto", "uniform", (200.0, 0.5)))),
        overrides=draw(exact_bits),
    )


def graph_configs() -> st.SearchStrategy[PT2EConfig]:
    """Return a strategy for configs of exported graphs."""
    changes = st.dictionaries(paths, quant_specs(), max_size=3)
    axes = st.lists(st.none() | st.sampled_from(("batch", "time")), max_size=4).map(tuple)
    shapes = st.none() | st.dictionaries(st.text(max_size=3), axes, max_size=2)
    return st.builds(
        PT2EConfig,
        activation=quant_specs(),
        weight=quant_specs(),
        bias=st.sampled_from((affine(INT32), no_quant())),
        overrides=changes,
        module_types=changes,
        operators=changes,
        dynamic_shapes=shapes,
    )


@st.composite
def spec_configs(draw: st.DrawFn) -> SpecConfig:
    """Draw any config that gives every point a spec."""
    kinds: list[type[SpecConfig]] = [PTQConfig, PT2EConfig]
    kind = draw(st.sampled_from(kinds))
    if kind is PT2EConfig:
        return draw(graph_configs())
    return kind(
        activation=draw(quant_specs()),
        weight=draw(quant_specs()),
        overrides=draw(st.dictionaries(paths, quant_specs(), max_size=3)),
    )


mappings = st.dictionaries(paths, st.lists(paths, min_size=1, max_size=2), max_size=2)
smoothquant_configs = st.builds(
    SmoothQuantConfig,
    alpha=st.just("auto") | st.floats(0.0, 1.0),
    mappings=mappings,
    insert_mul=st.booleans(),
)
rotation_configs = st.builds(
    RotationConfig,
    residual=st.booleans(),
    heads=st.booleans(),
    matrix=st.sampled_from(["hadamard", "random"]),
    seed=st.integers(0, 2**40),
    tied_embeddings=st.sampled_from(["untie", "refuse"]),
    overrides=st.dictionaries(paths, st.just({"heads": False}), max_size=2),
)
awq_configs = st.builds(
    AWQConfig,
    bits=st.integers(2, 8),
    group_size=st.none() | st.integers(1, 4096),
    n_grid=st.integers(1, 1000),
    clip=st.booleans(),
    overrides=exact_bits,
    mappings=mappings,
)


@register_config
@attrs.frozen(kw_only=True)
class OwnConfig(ModuleConfig):
    """A config of another package, with a field that takes anything."""

    name: ClassVar[str] = "own"

    bits: int = 4
    mode: Literal["on", "off"] | None = None
    share: float = attrs.field(default=0.5, converter=as_float)
    table: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=freeze)
    anything: object = None


scalars = st.none() | st.booleans() | st.integers() | st.text() | st.floats().map(lambda x: x + 0.0)
values = st.recursive(
    scalars | quant_specs(),
    lambda inner: (
        st.lists(inner, max_size=3).map(tuple) | st.dictionaries(st.text(), inner, max_size=3).map(freeze)
    ),
    max_leaves=8,
)
own_configs = st.builds(
    OwnConfig,
    bits=st.integers(),
    mode=st.sampled_from((None, "on", "off")),
    share=st.floats(-1e6, 1e6),
    table=st.dictionaries(st.text(alphabet="ab"), st.integers(), max_size=2),
    overrides=exact_bits,
)
configs: st.SearchStrategy[BaseConfig] = st.one_of(
    gptq_configs(), spec_configs(), smoothquant_configs | rotation_configs, awq_configs, own_configs
)


@given(configs)
def test_from_json_is_the_inverse_of_to_json(config: BaseConfig) -> None:
    """from_json(to_json(c)) = c."""
    assert from_json(to_json(config)) == config


@given(values)
def test_what_is_written_can_be_read(value: object) -> None:
    """to_json(c) is refused, or from_json reads it and gives c."""
    config = OwnConfig(anything=value)
    try:
        text = to_json(config)
    except ConfigError:
        return
    assert from_json(text) == config


@given(configs)
def test_json_is_canonical(config: BaseConfig) -> None:
    """to_json(from_json(t)) = t for every text that to_json gives."""
    text = to_json(config)
    assert to_json(from_json(text)) == text
    assert json.dumps(json.loads(text), sort_keys=True, separators=(",", ":")) == text


@given(configs, configs)
def test_fingerprints_tell_configs_apart(one: BaseConfig, other: BaseConfig) -> None:
    """fingerprint(a) = fingerprint(b) exactly where a = b."""
    assert (fingerprint(one) == fingerprint(other)) == (one == other)


def copied(config: BaseConfig) -> object:
    """Return `config` pickled and unpickled."""
    again: object = pickle.loads(pickle.dumps(config))  # noqa: S301  # its own pickle
    return again


@given(configs)
def test_configs_survive_copies(config: BaseConfig) -> None:
    """Pickling, deep-copying and evolving into nothing new give an equal value with the same hash."""
    for again in (copied(config), copy.deepcopy(config), attrs.evolve(config)):
        assert again == config
        assert hash(again) == hash(config)


@given(exact_bits, st.randoms(use_true_random=False))
def test_order_of_overrides_does_not_matter(
    overrides: dict[str, dict[str, int]], order: random.Random
) -> None:
    """The same rules in another order are the same config, with the same text."""
    items = list(overrides.items())
    order.shuffle(items)
    one, other = GPTQConfig(overrides=overrides), GPTQConfig(overrides=dict(items))
    assert one == other
    assert to_json(one) == to_json(other)


@given(spec_configs(), paths)
def test_without_a_rule_the_default_holds(config: SpecConfig, path: str) -> None:
    """resolve(path) is the field of the path's role where nothing matches."""
    plain = attrs.evolve(config, overrides={})
    weight, activation = (plain.resolve(f"{path}.{point}") for point in ("weight", "act_in"))
    assert (weight.spec, weight.origin) == (config.weight, "weight")
    assert (activation.spec, activation.origin) == (config.activation, "activation")


@given(spec_configs(), paths)
def test_the_exact_observer_path_beats_every_other_rule(config: SpecConfig, path: str) -> None:
    """Observer path before module path before glob before regular expression."""
    point = f"{path}.act_in"
    ranked = [f"re:{'.' * len(point)}", "*.act_in", path, point]
    for count in range(1, len(ranked) + 1):
        rules = {pattern: affine(DType.int(2 + rank)) for rank, pattern in enumerate(ranked[:count])}
        resolution = attrs.evolve(config, overrides=rules).resolve(point)
        assert resolution.origin == f"overrides[{ranked[count - 1]!r}]"
        assert resolution.spec == rules[ranked[count - 1]]


@given(st.dictionaries(paths, st.integers(), max_size=5), paths)
def test_a_rule_that_matches_nothing_changes_nothing(rules: dict[str, int], path: str) -> None:
    """Only rules that match take part."""
    before = winning_rule(rules, (path,))
    after = winning_rule({**rules, "no.such.module": 0}, (path,))
    assert before == after


@given(st.dictionaries(st.text(), st.integers(), max_size=8), st.text())
def test_frozen_mapping_is_the_mapping_it_was_made_of(mapping: dict[str, int], key: str) -> None:
    """Lookup, length, membership and equality are those of the dict."""
    frozen = FrozenMapping.of(mapping)
    assert dict(frozen) == mapping
    assert len(frozen) == len(mapping)
    assert [frozen[each] for each in mapping] == list(mapping.values())
    assert frozen.get(key) == mapping.get(key)


@given(configs, st.data())
def test_changed_texts_are_refused_or_mean_something(config: BaseConfig, data: st.DataObject) -> None:
    """A text with one character changed is another config or a ConfigError, never something else."""
    text = to_json(config)
    at = data.draw(st.integers(0, len(text) - 1))
    changed = text[:at] + data.draw(st.characters()) + text[at + 1 :]
    try:
        again = from_json(changed)
    except ConfigError:
        return
    assert from_json(to_json(again)) == again


def test_malformed_documents_give_config_errors() -> None:
    """Of 10,000 documents made by damaging real ones, each is a config or a ConfigError, in bounded time."""
    generator = random.Random(0)  # noqa: S311  # damage need not be unpredictable
    texts = [to_json(config) for config in _samples()]
    refused = []
    for _ in range(MALFORMED):
        text = _damaged(generator.choice(texts), generator)
        try:
            from_json(text)
        except ConfigError as error:
            refused.append(error)
    assert len(refused) > MALFORMED * 9 // 10
    assert all(str(error.field).startswith("$") for error in refused)


def _samples() -> list[BaseConfig]:
    rule = {"*.down_proj": {"bits": 8}, "re:.*": {"group_size": 32}}
    wide = affine(DType.int(16))
    return [
        GPTQConfig(overrides=rule),
        PTQConfig(activation=wide, overrides={"a.b": wide, "*.c": {"dtype": DType.uint(4)}}),
        SmoothQuantConfig(),
        RotationConfig(overrides={"*.v_proj": {"heads": False}}),
        AWQConfig(overrides=rule),
        PT2EConfig(),
    ]


JUNK = (
    "null", "true", "-1", "1e999", "NaN", "Infinity", '""', "[]", "{}", '"\\ud800"', "[" * 5000, "9" * 5000,
    '{"kind":"os.system"}', '{"kind":"DType"}', '{"kind":"Mapping","items":{}}', "\x00", "1.5", '{"kind":[]}',
)  # fmt: skip


def _damaged(text: str, generator: random.Random) -> str:
    start = generator.randrange(len(text))
    stop = min(len(text), start + generator.choice([0, 1, 2, 8, 40]))
    match generator.randrange(4):
        case 0:
            return text[:start] + text[stop + 1 :]
        case 1:
            return text[:start] + generator.choice(JUNK) + text[stop:]
        case 2:
            return text[:start]
        case _:
            return _with_a_value_replaced(text, generator)


def _with_a_value_replaced(text: str, generator: random.Random) -> str:
    parts = text.split(":")
    at = generator.randrange(1, len(parts))
    parts[at] = re.sub(r"^[^,}\]]*", lambda _: generator.choice(JUNK), parts[at])
    return ":".join(parts)


@pytest.mark.parametrize("depth", [100, 100_000])
def test_nesting_is_bounded(depth: int) -> None:
    """A document nested deeper than any config is refused, and the interpreter's stack is left alone."""
    with pytest.raises(ConfigError):
        from_json('{"schema":1,"config":' + "[" * depth + "]" * depth + "}")


modules = st.none() | st.sampled_from(("a", "b", "a.b")) | paths
problems = st.builds(
    Problem,
    module=modules,
    field=st.none() | st.sampled_from(("bits", "x")),
    value=st.integers(0, 1),
    expected=st.just("another"),
    sentence=st.none() | st.just("this is wrong"),
)
problem_lists = st.lists(problems, min_size=1, max_size=12) | st.lists(problems, min_size=40, max_size=60)


@given(problem_lists)
def test_every_problem_of_an_error_is_told_or_counted(found: list[Problem]) -> None:
    """Lines and numbers of those left out add up to all problems; each line is a problem's own text."""
    error = TicoError(*found)
    if len(found) == 1:
        assert str(error) == f"{found[0]}."
        return
    head, *lines = str(error).splitlines()
    told = [line[2:] for line in lines if line.startswith("- ")]
    left_out = [int(line.split()[1]) for line in lines if not line.startswith("- ")]
    assert head == f"{len(found)} problems:"
    assert set(told) <= {f"{problem}." for problem in found}
    assert len(told) + sum(left_out) == len(found)


@given(problem_lists)
def test_every_module_of_an_error_is_named_or_counted(found: list[Problem]) -> None:
    """A path that is not in the text is that of a kind whose others were counted."""
    text = str(TicoError(*found))
    missing = [problem for problem in found if problem.module and problem.module not in text]
    assert len(missing) <= sum(map(int, re.findall(r"^ *and (\d+) more", text, re.MULTILINE)))


@given(problem_lists)
def test_grouping_leaves_the_attributes_alone(found: list[Problem]) -> None:
    """An error holds its problems in their order, and speaks for the first one."""
    error = TicoError(*found)
    assert error.problems == tuple(found)
    assert str(error) == str(TicoError(*error.problems))
    first = (error.module, error.field, error.value, error.expected)
    assert first == (found[0].module, found[0].field, found[0].value, found[0].expected)


@given(problem_lists, paths)
def test_problems_of_one_kind_never_take_more_than_three_lines(found: list[Problem], path: str) -> None:
    """However many modules one thing is wrong with."""
    first = attrs.evolve(found[0], module=path)
    same = [attrs.evolve(first, module=f"{path}.{at}") for at in range(len(found) + 1)]
    assert len(str(TicoError(*same)).splitlines()) <= 1 + 3
