"""Configs as JSON: exact inverses, canonical bytes, nothing imported by name."""

from __future__ import annotations

import enum
import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence

import attrs

from tico_config import profiles
from tico_config._base_config import BaseConfig
from tico_config._deployment_profile import DeploymentProfile
from tico_config._errors import ConfigError
from tico_config._frozen_mapping import FrozenMapping
from tico_config._observer_specs import CustomObserverSpec
from tico_config._problem import Found, Problem, move
from tico_config._registry import ENUMS, KIND, MAPPING, value_kinds

SCHEMA_VERSION = 1
_MAX_CHARACTERS = 2**20
_MAX_DEPTH = 32
_NAMED = "named"
"""The key of a built-in profile, which stands in the text by its name."""
_SILENT = frozenset({"target", "super_block", "offset_bits", "dtype"})
"""Fields that are left out where they are None, and that may be."""


def to_json(config: BaseConfig) -> str:
    """Return `config` as canonical JSON: equal configs give equal texts, in every process.

    Raises:
        ConfigError: the class of the config is not registered, or the config holds a value that `from_json`
            would not read.

    >>> from tico_config import GPTQConfig
    >>> from_json(to_json(GPTQConfig(bits=3))) == GPTQConfig(bits=3)
    True
    """
    if not isinstance(config, BaseConfig):
        raise _refused("$.config", config, "a config")
    document = {"schema": SCHEMA_VERSION, "config": _encoded(config, "$.config", 0)}
    try:
        text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except ValueError as error:  # an integer of more digits than Python converts
        raise _refused("$", Found(str(error)), "a config that JSON can carry") from None
    _refuse_long(text)
    return text


def fingerprint(config: BaseConfig) -> str:
    """Return the SHA-256 of the canonical JSON, as 64 hexadecimal digits.

    Raises:
        ConfigError: the config has no JSON, see `to_json`.

    >>> from tico_config import GPTQConfig
    >>> fingerprint(GPTQConfig()) == fingerprint(GPTQConfig(bits=4))
    True
    """
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def from_json(text: str) -> BaseConfig:
    """Return the config that `to_json` made `text` from.

    The class of the config must be registered: the module that defines it was imported.

    Raises:
        ConfigError: `text` is not such a document; the field says where, as in ``$.config.bits``.

    >>> from tico_config import SmoothQuantConfig
    >>> from_json(to_json(SmoothQuantConfig(alpha=0.25))).alpha
    0.25
    """
    document = _parsed(text)
    if not isinstance(document, dict) or set(document) != {"schema", "config"}:
        raise _refused("$", document, "an object with exactly the keys schema and config")
    if type(document["schema"]) is not int or document["schema"] != SCHEMA_VERSION:
        raise _other_version(document["schema"])
    config = _decoded(document["config"], "$.config", 0)
    if not isinstance(config, BaseConfig):
        raise _refused("$.config", config, "a config")
    return config


def _refused(where: str, value: object, expected: str, sentence: str | None = None) -> ConfigError:
    return ConfigError(Problem(field=where, value=value, expected=expected, sentence=sentence))


def _other_version(found: object) -> ConfigError:
    expected = f"{SCHEMA_VERSION}, the version that this library reads"
    if type(found) is not int or found < SCHEMA_VERSION:
        return _refused("$.schema", found, expected)
    sentence = f"the text was produced by a newer version: $.schema is {found}, not {SCHEMA_VERSION}"
    return _refused("$.schema", found, expected, sentence)


def _refuse_long(text: str) -> None:
    if len(text) > _MAX_CHARACTERS:
        found, expected = Found(f"{len(text)} characters"), f"at most {_MAX_CHARACTERS} characters"
        raise _refused("$", found, expected, f"the text has {found}, the limit is {_MAX_CHARACTERS}")


def _refuse_deep(where: str, depth: int) -> None:
    if depth > _MAX_DEPTH:
        expected = f"a document of at most {_MAX_DEPTH} levels"
        sentence = f"{where[:80]}…: the document has more than {_MAX_DEPTH} levels"
        raise _refused(where, Found("a deeper one"), expected, sentence)


def _refuse_unreadable(where: str, value: object) -> None:
    """Refuse what both directions refuse: numbers that are not finite, text that has no UTF-8."""
    if isinstance(value, float) and not math.isfinite(value):
        raise _refused(where, value, "a finite number")
    if isinstance(value, str) and any("\ud800" <= character <= "\udfff" for character in value):
        raise _refused(where, value, "text without lone surrogates")


def _encoded(value: object, where: str, depth: int) -> object:
    _refuse_deep(where, depth)
    match value:
        case None | bool() | int() | float() | str():
            _refuse_unreadable(where, value)
            return value
        case enum.Enum() if type(value) is ENUMS.get(type(value).__name__):
            return {KIND: type(value).__name__, "value": value.value}
        case tuple():
            return [_encoded(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(value)]
        case FrozenMapping():
            return {KIND: MAPPING, "items": _encoded_items(value, where, depth)}
        case DeploymentProfile() if profiles.BUILT_IN.get(value.name) == value:
            return {KIND: type(value).__name__, _NAMED: value.name}
        case _:
            return _encoded_fields(_known(value, where), where, depth)


def _encoded_items(value: Mapping[str, object], where: str, depth: int) -> dict[str, object]:
    for key in value:
        _refuse_unreadable(where, key)
    return {key: _encoded(item, f"{where}.{key}", depth + 2) for key, item in value.items()}


def _encoded_fields(value: attrs.AttrsInstance, where: str, depth: int) -> dict[str, object]:
    fields = {name: getattr(value, name) for name in _arguments(type(value))}
    encoded = {
        name: _encoded(field, f"{where}.{name}", depth + 1)
        for name, field in fields.items()
        if not (name in _SILENT and field is None)
    }
    return {KIND: type(value).__name__} | encoded


def _arguments(kind: type[attrs.AttrsInstance]) -> dict[str, str]:
    """Return the arguments of the constructor of `kind` by the names of its fields."""
    return {attribute.name: attribute.alias for attribute in attrs.fields(kind) if attribute.init}


def _known(value: object, where: str) -> attrs.AttrsInstance:
    kind = value_kinds().get(type(value).__name__)
    if kind is not None and type(value) is kind:
        return value
    if isinstance(value, BaseConfig | CustomObserverSpec):
        decorator = "register_config" if isinstance(value, BaseConfig) else "register_observer_spec"
        name = f"{type(value).__module__}.{type(value).__qualname__}"
        raise ConfigError(
            Problem(
                field=where,
                value=value,
                expected="of a registered class",
                remedy=f"decorate the class with @{decorator}",
                sentence=f"{where} is a {name}, which is not registered, so from_json could not read it",
            )
        )
    raise _refused(where, value, "a value that JSON can carry")


def _parsed(text: str) -> object:
    if not isinstance(text, str):
        raise _refused("$", text, "a str")
    _refuse_long(text)
    try:
        text.encode()
        document: object = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        found = Found(str(error) or type(error).__name__)
        raise _refused("$", found, "a JSON document", f"the text is no JSON document: {found}") from None
    return document


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        occurrences = Counter(name for name, _ in pairs)
        found = Found(f"{next(name for name, times in occurrences.items() if times > 1)!r} twice")
        sentence = f"an object of the text has the key {found}"
        raise _refused("$", found, "every key once in an object", sentence)
    return unique


def _no_constant(text: str) -> float:
    sentence = f"the text has {text}, which is no finite number"
    raise _refused("$", Found(text), "finite numbers only", sentence)


def _decoded(node: object, where: str, depth: int) -> object:
    _refuse_deep(where, depth)
    match node:
        case list():
            return tuple(_decoded(item, f"{where}[{index}]", depth + 1) for index, item in enumerate(node))
        case dict():
            return _decoded_object(node, where, depth)
        case _:
            _refuse_unreadable(where, node)
            return node


def _decoded_object(node: Mapping[str, object], where: str, depth: int) -> object:
    kind, rest = node.get(KIND), {key: value for key, value in node.items() if key != KIND}
    if kind == MAPPING:
        return _decoded_mapping(rest, where, depth)
    if isinstance(kind, str) and kind in ENUMS:
        return _decoded_member(ENUMS[kind], rest, where)
    if not isinstance(kind, str) or kind not in value_kinds():
        raise _unknown_kind(kind, where)
    return _decoded_value(value_kinds()[kind], rest, where, depth)


def _unknown_kind(kind: object, where: str) -> ConfigError:
    known = sorted({MAPPING, *ENUMS, *value_kinds()})
    remedy = "import the module that defines and registers it" if isinstance(kind, str) else None
    expected = f"one of {', '.join(known)}"
    return ConfigError(Problem(field=f"{where}.{KIND}", value=kind, expected=expected, remedy=remedy))


def _decoded_value(
    kind: type[attrs.AttrsInstance], rest: Mapping[str, object], where: str, depth: int
) -> object:
    arguments = _arguments(kind)
    if issubclass(kind, DeploymentProfile) and set(rest) == {_NAMED}:
        return _named_profile(rest[_NAMED], where)
    for field in attrs.fields(kind):
        if field.name in _SILENT - rest.keys() and field.default is None:
            arguments.pop(field.name, None)
    if set(rest) != set(arguments):
        raise _other_fields(sorted(rest), sorted(arguments), where)
    fields = {alias: _decoded(rest[name], f"{where}.{name}", depth + 1) for name, alias in arguments.items()}
    try:
        value: object = kind(**fields)
    except ConfigError as error:
        raise ConfigError(*(move(problem, where) for problem in error.problems)) from None
    except (TypeError, ValueError) as error:  # from a converter that does not expect what the text holds
        raise _refused(where, Found(str(error)), f"fields that {kind.__name__} takes") from error
    return value


def _named_profile(name: object, where: str) -> DeploymentProfile:
    profile = profiles.BUILT_IN.get(name) if isinstance(name, str) else None
    if profile is None:
        raise _refused(f"{where}.{_NAMED}", name, f"one of {', '.join(profiles.BUILT_IN)}")
    return profile


def _other_fields(found: Sequence[str], expected: Sequence[str], where: str) -> ConfigError:
    lacking, unknown = sorted(set(expected) - set(found)), sorted(set(found) - set(expected))
    parts = [f"lacks {', '.join(map(repr, lacking))}"] if lacking else []
    parts += [f"has the unknown {', '.join(map(repr, unknown))}"] if unknown else []
    value = Found(f"the fields {found}")
    return _refused(where, value, f"exactly the fields {expected}", f"{where} {' and '.join(parts)}")


def _decoded_member(enumeration: type[enum.Enum], rest: Mapping[str, object], where: str) -> enum.Enum:
    for member in enumeration:
        if rest == {"value": member.value}:
            return member
    raise _refused(where, dict(rest), f"a value of {enumeration.__name__}")


def _decoded_mapping(rest: Mapping[str, object], where: str, depth: int) -> FrozenMapping[object]:
    items = rest.get("items")
    if set(rest) != {"items"} or not isinstance(items, dict):
        raise _refused(where, dict(rest), "a mapping with its items")
    for key in items:
        _refuse_unreadable(where, key)
    return FrozenMapping.of({key: _decoded(item, f"{where}.{key}", depth + 2) for key, item in items.items()})
