"""Values of configs as TOML has them: texts and tables for formats, granularities, observers and targets."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Final, TypeAlias, TypeVar

from tico_cli._nearest import unknown
from tico_config import (
    FLOAT_FORMATS,
    ConfigError,
    DType,
    EMASpec,
    EntropySpec,
    Granularity,
    HessianMSESpec,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    NumberFormat,
    PercentileSpec,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    Problem,
    QScheme,
    QuantSpec,
    SuperBlock,
    no_quant,
    profiles,
)

T = TypeVar("T")

_Observer: TypeAlias = (
    EMASpec | EntropySpec | HessianMSESpec | HistogramSpec | MinMaxSpec | MSESpec | PercentileSpec
)

_FLOAT: Final = "float"
_DTYPE: Final = re.compile(r"(u?)int(\d{1,2})")
_GROUP: Final = re.compile(r"group_(\d{1,9})")
_GRANULARITIES: Final[Mapping[str, Granularity]] = {
    "per_channel": PerChannel(),
    "per_tensor": PerTensor(),
    "per_token": PerToken(),
}
_OBSERVERS: Final[Mapping[str, type[_Observer]]] = {
    "ema": EMASpec,
    "entropy": EntropySpec,
    "hessian_mse": HessianMSESpec,
    "histogram": HistogramSpec,
    "minmax": MinMaxSpec,
    "mse": MSESpec,
    "percentile": PercentileSpec,
}

_DTYPES: Final = "a text such as 'int8', 'uint4', 'fp8_e4m3' or 'mxfp4'"


def field_value(name: str, value: object) -> object:
    """Return what the field `name` of a config is given for `value` in a recipe.

    ``weight``, ``activation``, ``key`` and ``value`` are ``"float"`` or a table of a `QuantSpec`, where
    ``dtype`` is a text such as ``"int8"`` or ``"mxfp4"``, ``granularity`` one such as ``"group_64"``, and
    ``observer`` a name or a table with ``kind``. ``target`` is the name of a profile. ``overrides`` map paths
    to ``"float"`` or to a table of fields. All else stays as it is, for the config to check.

    Raises:
        ConfigError: a text is none of those that have a meaning there.

    >>> str(field_value("weight", {"dtype": "int8", "granularity": "per_token"}))
    'int8 symmetric per token'
    """
    reader = _READERS.get(name)
    return value if reader is None else reader(value)


def _spec(value: object) -> QuantSpec:
    if value == _FLOAT:
        return no_quant()
    return QuantSpec(**_fields(value, "float, or a table with fields of a QuantSpec"))  # type: ignore[arg-type]


def _overrides(value: object) -> dict[str, object]:
    table = _table(value, "a table from paths to what holds there")
    fields = '"float", or a table with some fields'
    return {path: no_quant() if each == _FLOAT else _fields(each, fields) for path, each in table.items()}


def _fields(value: object, expected: str) -> dict[str, object]:
    return {name: field_value(name, each) for name, each in _table(value, expected).items()}


def _table(value: object, expected: str) -> Mapping[str, object]:
    if not isinstance(value, dict):
        raise ConfigError(Problem(value=value, expected=expected))
    return value


def _dtype(value: object) -> NumberFormat:
    for dtype in FLOAT_FORMATS:
        if value == str(dtype):
            return dtype
    match = _DTYPE.fullmatch(value) if isinstance(value, str) else None
    if match is None:
        raise ConfigError(Problem(field="dtype", value=value, expected=_DTYPES))
    return DType(int(match[2]), signed=not match[1])


def _granularity(value: object) -> Granularity:
    match = _GROUP.fullmatch(value) if isinstance(value, str) else None
    if match is not None:
        return PerGroup(size=int(match[1]))
    return _named("granularity", value, _GRANULARITIES, "group_64")


def _observer(value: object) -> object:
    table = {"kind": value} if isinstance(value, str) else dict(_table(value, "a name, or a table with kind"))
    kind = _named("observer", table.pop("kind", None), _OBSERVERS)
    return kind(**table)


def _scheme(value: object) -> QScheme:
    return _named("qscheme", value, {each.value: each for each in QScheme})


def _target(value: object) -> object:
    return _named("target", value, profiles.BUILT_IN)


def _super_block(value: object) -> SuperBlock:
    return SuperBlock(**_table(value, "a table with fields of a SuperBlock"))  # type: ignore[arg-type]


def _named(what: str, name: object, known: Mapping[str, T], *more: str) -> T:
    found = known.get(name) if isinstance(name, str) else None
    if found is None:
        raise unknown(None, what, name, (*known, *more))
    return found


_READERS: Final[Mapping[str, Callable[[object], object]]] = {
    "activation": _spec,
    "dtype": _dtype,
    "granularity": _granularity,
    "key": _spec,
    "observer": _observer,
    "overrides": _overrides,
    "qscheme": _scheme,
    "super_block": _super_block,
    "target": _target,
    "value": _spec,
    "weight": _spec,
}
