"""A config of somebody else, written the natural way: types are checked, JSON works, mistakes explained."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal, Protocol

import attrs
import pytest

from tico_config import (
    UINT4,
    UINT8,
    BaseConfig,
    ConfigError,
    DType,
    FrozenMapping,
    ModuleConfig,
    Problem,
    SpecConfig,
    TicoError,
    affine,
    fingerprint,
    from_json,
    register_config,
    to_json,
)
from tico_config.validation import as_float, check_number, freeze

if TYPE_CHECKING:
    from decimal import Decimal


class Shape(Protocol):
    """A protocol that isinstance does not know."""

    def area(self) -> float:
        """Return the area."""


@register_config
@attrs.frozen(kw_only=True)
class DroppingConfig(ModuleConfig):
    """A config with a field of every kind whose type is checked, and some whose type is not."""

    name: ClassVar[str] = "dropping"

    bits: int = 4
    share: float = 0.5
    exact: float = attrs.field(default=0.5, converter=as_float)
    strict: bool = False
    label: str = ""
    size: int | None = None
    order: Literal["first", "last", 3] = "first"
    limit: Literal["auto"] | float = "auto"
    steps: tuple[int, ...] = ()
    dtype: DType = UINT8
    table: Mapping[str, int] = attrs.field(factory=FrozenMapping, converter=freeze)
    anything: object = None
    unknown: Decimal | None = None
    protocol: Shape | None = None
    function: Callable[[], int] | None = None

    def field_problems(self) -> list[Problem]:
        """Compare without a thought for types."""
        if self.share > 0.9:
            return [Problem(field="share", value=self.share, expected="at most 0.9")]
        return []


@register_config
@attrs.frozen(kw_only=True)
class DroppingMoreConfig(DroppingConfig):
    """A config that adds a field and a check to those of its base."""

    more: float = attrs.field(default=0.0, converter=as_float)

    def field_problems(self) -> list[Problem]:
        """Add to the checks of the base."""
        found = check_number("more", self.more, 0, 1)
        return [*super().field_problems(), *([found] if found else [])]


@attrs.frozen(kw_only=True)
class BareConfig(BaseConfig):
    """A config that is derived from the base of all, with nothing but fields."""

    name: ClassVar[str] = "bare"

    bits: int = 4


class Colour(enum.Enum):
    """An enumeration that JSON does not know."""

    RED = "red"


def made(**fields: object) -> BaseConfig:
    """Return a config with `fields`, which no type checker has seen."""
    return DroppingConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"bits": "4"}, "bits must be an integer, got '4'"),
        ({"bits": True}, "bits must be an integer, got True"),
        ({"bits": 4.0}, "bits must be an integer, got 4.0"),
        ({"share": "x"}, "share must be a number, got 'x'"),
        ({"share": False}, "share must be a number, got False"),
        ({"strict": 1}, "strict must be True or False, got 1"),
        ({"label": None}, "label must be text, got None"),
        ({"size": "8"}, "size must be an integer or None, got '8'"),
        ({"order": "middle"}, "order must be 'first', 'last' or 3, got 'middle'"),
        ({"order": 3.0}, "order must be 'first', 'last' or 3, got 3.0"),
        ({"limit": "none"}, "limit must be 'auto' or a number, got 'none'"),
        ({"steps": [1]}, "steps must be a tuple with an integer for each item, got [1]"),
        ({"steps": (1, "2")}, "steps must be a tuple with an integer for each item, got (1, '2')"),
        ({"dtype": "int8"}, "dtype must be a DType, got 'int8'"),
        ({"table": 3}, "table must be a mapping with an integer for each value, got 3"),
        ({"table": {"a": "b"}}, "table must be a mapping with an integer for each value, got {'a': 'b'}"),
    ],
)
def test_values_of_another_type_are_refused_with_the_field(fields: Mapping[str, object], text: str) -> None:
    """The author wrote a type and nothing else; a check that fails on the value is no error of Python."""
    with pytest.raises(ConfigError) as caught:
        made(**fields)
    assert str(caught.value) == f"{text}."


@pytest.mark.parametrize(
    "fields",
    [
        {"share": 0},
        {"exact": 1},
        {"size": None},
        {"order": 3},
        {"limit": 2},
        {"table": FrozenMapping.of({"a": 1})},
        {"anything": {1, 2}},
        {"unknown": "anything"},
        {"protocol": "anything"},
        {"function": "anything"},
    ],
)
def test_values_of_the_type_and_fields_of_unknown_types_are_accepted(fields: Mapping[str, object]) -> None:
    """An int is a float; a type that can't be found out at run time is left to the author."""
    (name,) = fields
    assert getattr(made(**fields), name) == fields[name]


def test_types_and_ranges_are_reported_at_once() -> None:
    """The check of the author still runs on the fields that it can compare."""
    with pytest.raises(ConfigError) as caught:
        made(bits="4", share=0.95, strict=None)
    assert [problem.field for problem in caught.value.problems] == ["bits", "strict", "share"]


def test_errors_in_a_check_are_not_hidden() -> None:
    """Where every type is right, what the author's check raises is raised."""

    @attrs.frozen(kw_only=True)
    class FailingConfig(ModuleConfig):
        name: ClassVar[str] = "failing"

        def field_problems(self) -> Sequence[Problem]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        FailingConfig()


def test_checks_of_the_base_are_kept() -> None:
    """A subclass adds its checks by way of super()."""
    with pytest.raises(ConfigError) as caught:
        DroppingMoreConfig(share=0.95, more=2)
    assert [problem.field for problem in caught.value.problems] == ["share", "more"]


def test_base_config_is_enough_to_derive_from() -> None:
    """Overrides change fields, wrong ones are refused, and no method has to be written."""
    config = BareConfig(overrides={"*.head": {"bits": 8}})
    resolution = config.resolve("lm.head")
    assert (resolution.spec, resolution.origin) == (BareConfig(bits=8), "overrides['*.head']")
    assert config.resolve("lm.body").origin == "defaults"
    with pytest.raises(ConfigError) as caught:
        BareConfig(overrides={"*.head": {"bits": "8"}})
    assert caught.value.field == "overrides['*.head'].bits"


def test_own_configs_have_json() -> None:
    """Reading gives the same config and the same fingerprint, of its own class."""
    config = DroppingMoreConfig(
        bits=3, table={"a": 1}, steps=(1, 2), dtype=UINT4, overrides={"*.b": {"bits": 8}}
    )
    again = from_json(to_json(config))
    assert again == config
    assert type(again) is DroppingMoreConfig
    assert fingerprint(again) == fingerprint(config)


def test_json_of_own_configs_is_validated() -> None:
    """What a converter or a check refuses is a ConfigError with its place, whatever it raised."""

    @register_config
    @attrs.frozen(kw_only=True)
    class CountingConfig(ModuleConfig):
        name: ClassVar[str] = "counting"
        count: int = attrs.field(default=1, converter=int)

    text = to_json(CountingConfig())
    assert from_json(text.replace('"count":1', '"count":"2"')) == CountingConfig(count=2)
    for value, field in (('"x"', "$.config"), ("[]", "$.config"), ("1e999", "$.config.count")):
        with pytest.raises(ConfigError) as caught:
            from_json(text.replace('"count":1', f'"count":{value}'))
        assert caught.value.field == field


def test_fields_under_another_name_and_derived_ones_have_json() -> None:
    """A private field is passed under its public name; a field that the class computes is not in the text."""

    @register_config
    @attrs.frozen(kw_only=True)
    class PrivateConfig(ModuleConfig):
        name: ClassVar[str] = "private"
        _seed: int = 0
        doubled: int = attrs.field(init=False, default=0)

    config = PrivateConfig(seed=3)
    assert from_json(to_json(config)) == config
    assert "doubled" not in to_json(config)


@pytest.mark.parametrize("config", [BareConfig(), SpecConfig(), BaseConfig()])
def test_unregistered_configs_have_no_json(config: BaseConfig) -> None:
    """Writing says what reading would need."""
    for write in (to_json, fingerprint):
        with pytest.raises(ConfigError, match="@register_config") as caught:
            write(config)
        assert type(config).__qualname__ in str(caught.value)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        (float("nan"), "$.config.anything"),
        (float("inf"), "$.config.anything"),
        ("\ud800", "$.config.anything"),
        (FrozenMapping.of({"\ud800": 1}), "$.config.anything"),
        ((1, Colour.RED), "$.config.anything[1]"),
        (b"bytes", "$.config.anything"),
        (BareConfig(), "$.config.anything"),
        pytest.param(10**5000, "$", id="huge"),
        ("x" * 2**20, "$"),
    ],
)
def test_nothing_is_written_that_can_not_be_read(value: object, field: str) -> None:
    """A value that `from_json` would refuse is refused by `to_json`, with its place."""
    with pytest.raises(ConfigError) as caught:
        to_json(DroppingConfig(anything=value))
    assert caught.value.field == field


def test_depth_is_limited_alike_in_both_directions() -> None:
    """The deepest config that is written is read; one level more is refused when it is written."""
    deepest: object = 0
    for _ in range(31):
        deepest = (deepest,)
    assert from_json(to_json(DroppingConfig(anything=deepest))) == DroppingConfig(anything=deepest)
    with pytest.raises(ConfigError, match="more than 32 levels"):
        to_json(DroppingConfig(anything=(deepest,)))


def test_kinds_of_text_that_are_not_registered_are_answered_with_the_way_out() -> None:
    """The module that defines the config was not imported."""
    document = json.loads(to_json(DroppingConfig()))
    document["config"]["kind"] = "ElsewhereConfig"
    with pytest.raises(ConfigError, match="import the module") as caught:
        from_json(json.dumps(document))
    assert "DroppingConfig" in caught.value.expected


def twin(module: str, name: str = "DroppingConfig") -> type[ModuleConfig]:
    """Return a config class of another module."""
    namespace = {"__module__": module, "name": "twin"}
    return attrs.frozen(kw_only=True)(type(name, (ModuleConfig,), namespace))


@pytest.mark.parametrize(
    ("name", "owner"),
    [
        ("DroppingConfig", __name__),
        ("GPTQConfig", "tico_config._gptq_config"),
        ("DType", "tico_config._dtype"),
    ],
)
def test_two_classes_of_one_name_are_refused(name: str, owner: str) -> None:
    """The error names both modules, and the first one keeps the name."""
    with pytest.raises(ConfigError) as caught:
        register_config(twin("somewhere.other", name))
    assert "somewhere.other" in str(caught.value)
    assert owner in str(caught.value)
    assert from_json(to_json(DroppingConfig(bits=2))) == DroppingConfig(bits=2)


@pytest.mark.parametrize("name", ["Mapping", "QScheme"])
def test_names_of_json_itself_are_taken(name: str) -> None:
    """A config called as a mapping or an enumeration could not be read."""
    with pytest.raises(ConfigError, match="is taken by"):
        register_config(twin("somewhere.other", name))


def test_a_class_that_is_defined_again_replaces_itself() -> None:
    """As a cell of a notebook does that is run twice."""
    first, second = twin("a.notebook", "CellConfig"), twin("a.notebook", "CellConfig")
    assert register_config(first) is first
    assert register_config(second) is second
    assert type(from_json(to_json(second()))) is second


class PlainConfig(ModuleConfig):
    """A class that attrs has not made."""

    name: ClassVar[str] = "plain"


@attrs.frozen(kw_only=True)
class NamelessConfig(ModuleConfig):
    """A config without a name."""


@attrs.frozen(kw_only=True)
class KindConfig(ModuleConfig):
    """A config with a field that JSON needs."""

    name: ClassVar[str] = "kind"

    kind: str = ""


@pytest.mark.parametrize(
    ("config", "field"), [(PlainConfig, "config"), (NamelessConfig, "name"), (KindConfig, "kind")]
)
def test_classes_that_can_not_be_registered_are_refused(config: type[BaseConfig], field: str) -> None:
    """The error names the class."""
    with pytest.raises(ConfigError) as caught:
        register_config(config)
    assert caught.value.field == field
    assert config.__name__ in str(caught.value)


def test_only_configs_are_registered() -> None:
    """A class that is no config is an error of ours."""
    with pytest.raises(TicoError, match="derived from BaseConfig"):
        register_config(DType)  # type: ignore[type-var]


def test_specs_of_own_configs_are_changed_by_the_same_methods() -> None:
    """A config with a spec for each point is derived from `SpecConfig`, overrides included."""

    @register_config
    @attrs.frozen(kw_only=True)
    class PointConfig(SpecConfig):
        name: ClassVar[str] = "points"
        keys: Mapping[str, object] = attrs.field(factory=FrozenMapping, converter=freeze)

        def field_problems(self) -> list[Problem]:
            changes = self.keys.items()
            return [
                each for key, change in changes for each in self.change_problems(f"keys[{key!r}]", change)
            ]

    config = PointConfig(keys={"a": {"dtype": UINT4}}, overrides={"b": affine(UINT4)})
    assert config.apply_change("weight", "keys['a']", config.keys["a"], "a.weight").spec == affine(UINT4)
    assert from_json(to_json(config)) == config
    with pytest.raises(ConfigError) as caught:
        PointConfig(keys={"a": {"dtype": 4}})
    assert caught.value.field == "keys['a'].dtype"
