"""Configs as JSON: exact inverses, canonical bytes, nothing imported by name."""

from __future__ import annotations

import enum
import hashlib
import json
from collections import Counter
from collections.abc import Collection, Mapping

import attrs

from tico_config._awq_config import AWQConfig
from tico_config._base_config import BaseConfig
from tico_config._dtype import DType, MXFormat
from tico_config._errors import ConfigError, Found, Problem
from tico_config._frozen_mapping import FrozenMapping
from tico_config._gptq_config import GPTQConfig
from tico_config._grid import PerChannel, PerGroup, PerTensor, PerToken, QScheme
from tico_config._observer_specs import (
    EMASpec,
    EntropySpec,
    HessianMSESpec,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    MXSpec,
    NoQuant,
    PercentileSpec,
)
from tico_config._pt2e_config import PT2EConfig
from tico_config._ptq_config import PTQConfig
from tico_config._quant_spec import QuantSpec
from tico_config._smoothquant_config import SmoothQuantConfig

SCHEMA_VERSION = 1
_MAX_CHARACTERS = 2**20
_MAX_DEPTH = 32
_KIND = "kind"

_CONFIGS: tuple[type[BaseConfig], ...] = (GPTQConfig, PTQConfig, SmoothQuantConfig, PT2EConfig, AWQConfig)
_VALUES: tuple[type[attrs.AttrsInstance], ...] = (
    DType,
    PerTensor,
    PerChannel,
    PerGroup,
    PerToken,
    MinMaxSpec,
    EMASpec,
    HistogramSpec,
    PercentileSpec,
    MSESpec,
    HessianMSESpec,
    EntropySpec,
    MXSpec,
    NoQuant,
    QuantSpec,
)
_ENUMS: tuple[type[enum.Enum], ...] = (QScheme, MXFormat)


def to_json(config: BaseConfig) -> str:
    """Return `config` as canonical JSON: equal configs give equal texts, in every process.

    Raises:
        ConfigError: the config holds a value that JSON cannot carry.

    >>> from_json(to_json(GPTQConfig(bits=3))) == GPTQConfig(bits=3)
    True
    """
    document = {"schema": SCHEMA_VERSION, "config": _encoded(config, "$")}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)


def fingerprint(config: BaseConfig) -> str:
    """Return the SHA-256 of the canonical JSON, as 64 hexadecimal digits.

    >>> fingerprint(GPTQConfig()) == fingerprint(GPTQConfig(bits=4))
    True
    """
    return hashlib.sha256(to_json(config).encode()).hexdigest()


def from_json(text: str, *, extra_configs: Collection[type[BaseConfig]] = ()) -> BaseConfig:
    """Return the config that `to_json` made `text` from.

    `extra_configs` are config classes of other packages that `text` may name.

    Raises:
        ConfigError: `text` is not such a document; the field says where, as in ``$.config.bits``.

    >>> from_json(to_json(SmoothQuantConfig(alpha=0.25))).alpha
    0.25
    """
    document = _parsed(text)
    if not isinstance(document, dict) or set(document) != {"schema", "config"}:
        raise _refused("$", document, "an object with exactly the keys schema and config")
    if type(document["schema"]) is not int or document["schema"] != SCHEMA_VERSION:
        raise _refused("$.schema", document["schema"], _version_expected(document["schema"]))
    kinds = {kind.__name__: kind for kind in (*_VALUES, *_CONFIGS, *extra_configs)}
    config = _decoded(document["config"], "$.config", kinds)
    if not isinstance(config, BaseConfig):
        raise _refused("$.config", config, "a config")
    return config


def _version_expected(found: object) -> str:
    newer = type(found) is int and found > SCHEMA_VERSION
    origin = "; the text was produced by a newer version" if newer else ""
    return f"{SCHEMA_VERSION}, the version that this library reads{origin}"


def _refused(where: str, value: object, expected: str) -> ConfigError:
    return ConfigError(Problem(field=where, value=value, expected=expected))


def _encoded(value: object, where: str) -> object:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case enum.Enum():
            return {_KIND: type(value).__name__, "value": value.value}
        case tuple():
            return [_encoded(item, f"{where}[{index}]") for index, item in enumerate(value)]
        case FrozenMapping():
            return {_KIND: "Mapping", "items": {k: _encoded(v, f"{where}.{k}") for k, v in value.items()}}
        case _:
            return _encoded_fields(_known(value, where), where)


def _encoded_fields(value: attrs.AttrsInstance, where: str) -> dict[str, object]:
    kind = type(value)
    names = [attribute.name for attribute in attrs.fields(kind)]
    return {_KIND: kind.__name__} | {
        name: _encoded(getattr(value, name), f"{where}.{name}") for name in names
    }


def _known(value: object, where: str) -> attrs.AttrsInstance:
    if isinstance(value, BaseConfig):
        return value
    for kind in _VALUES:
        if isinstance(value, kind):
            return value
    raise _refused(where, value, "a value that JSON can carry")


def _parsed(text: str) -> object:
    if not isinstance(text, str):
        raise _refused("$", text, "a str")
    if len(text) > _MAX_CHARACTERS:
        raise _refused("$", Found(f"{len(text)} characters"), f"at most {_MAX_CHARACTERS} characters")
    try:
        text.encode()
        document: object = json.loads(
            text, object_pairs_hook=_without_duplicates, parse_constant=_no_constant
        )
    except ConfigError:
        raise
    except (ValueError, RecursionError) as error:
        raise _refused("$", Found(str(error) or type(error).__name__), "a JSON document") from None
    return document


def _without_duplicates(pairs: list[tuple[str, object]]) -> dict[str, object]:
    unique = dict(pairs)
    if len(unique) < len(pairs):
        occurrences = Counter(name for name, _ in pairs)
        twice = next(name for name, times in occurrences.items() if times > 1)
        raise _refused("$", Found(f"{twice!r} twice"), "every key once in an object")
    return unique


def _no_constant(text: str) -> float:
    raise _refused("$", Found(text), "finite numbers only")


def _decoded(node: object, where: str, kinds: Mapping[str, type], depth: int = 0) -> object:
    if depth > _MAX_DEPTH:
        raise _refused(where, Found("a deeper one"), f"a document of at most {_MAX_DEPTH} levels")
    match node:
        case list():
            return tuple(_decoded(item, f"{where}[{i}]", kinds, depth + 1) for i, item in enumerate(node))
        case dict():
            return _value(node, where, kinds, depth)
        case str() if not _is_text(node):
            raise _refused(where, node, "text without lone surrogates")
        case _:
            return node


def _is_text(text: str) -> bool:
    return not any("\ud800" <= character <= "\udfff" for character in text)


def _value(node: Mapping[str, object], where: str, kinds: Mapping[str, type], depth: int) -> object:
    kind, rest = node.get(_KIND), {key: value for key, value in node.items() if key != _KIND}
    for enumeration in _ENUMS:
        if kind == enumeration.__name__:
            return _member(enumeration, rest, where)
    if kind == "Mapping":
        return _mapping(rest, where, kinds, depth)
    if not isinstance(kind, str) or kind not in kinds:
        raise _refused(f"{where}.{_KIND}", kind, f"one of {', '.join(sorted(kinds))}")
    names = [attribute.name for attribute in attrs.fields(kinds[kind])]
    if sorted(rest) != sorted(names):
        raise _refused(where, Found(f"the fields {sorted(rest)}"), f"exactly the fields {sorted(names)}")
    fields = {name: _decoded(rest[name], f"{where}.{name}", kinds, depth + 1) for name in names}
    try:
        value: object = kinds[kind](**fields)
    except ConfigError as error:
        moved = [attrs.evolve(problem, field=f"{where}.{problem.field}") for problem in error.problems]
        raise ConfigError(*moved) from None
    return value


def _member(enumeration: type[enum.Enum], rest: Mapping[str, object], where: str) -> enum.Enum:
    for member in enumeration:
        if rest == {"value": member.value}:
            return member
    raise _refused(where, dict(rest), f"a value of {enumeration.__name__}")


def _mapping(
    rest: Mapping[str, object], where: str, kinds: Mapping[str, type], depth: int
) -> FrozenMapping[object]:
    items = rest.get("items")
    if set(rest) != {"items"} or not isinstance(items, dict) or not all(map(_is_text, items)):
        raise _refused(where, dict(rest), "a mapping with its items")
    return FrozenMapping.of(
        {key: _decoded(item, f"{where}.{key}", kinds, depth + 2) for key, item in items.items()}
    )
