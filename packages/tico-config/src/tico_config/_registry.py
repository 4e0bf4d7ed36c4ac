"""The kinds of values that JSON can name: those of this package, and every registered config."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

from tico_config._base_config import BaseConfig
from tico_config._dtype import DType, MXFormat
from tico_config._errors import ConfigError
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
from tico_config._problem import Found, Problem
from tico_config._quant_spec import QuantSpec

C = TypeVar("C", bound=BaseConfig)

KIND: Final = "kind"
"""The key of a JSON object that names the class of its value."""

MAPPING: Final = "Mapping"
"""The kind of a mapping."""

_VALUES: Final[tuple[type[attrs.AttrsInstance], ...]] = (
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
ENUMS: Final[Mapping[str, type[enum.Enum]]] = {kind.__name__: kind for kind in (QScheme, MXFormat)}
_KINDS: Final[dict[str, type[attrs.AttrsInstance]]] = {kind.__name__: kind for kind in _VALUES}


def register_config(config: type[C]) -> type[C]:
    """Let `to_json` and `from_json` handle a class of configs: a decorator, above that of attrs.

    The name of the class stands in the text, so no other config may have it; a class that is defined again,
    in a notebook for example, replaces itself. A text can be read once the module that defines its config was
    imported.

    Raises:
        ConfigError: it is no config class with a `name`, or another class has its name.

    >>> from typing import ClassVar
    >>> from tico_config import ModuleConfig, from_json, to_json
    >>> @register_config
    ... @attrs.frozen(kw_only=True)
    ... class HalvingConfig(ModuleConfig):
    ...     name: ClassVar[str] = "halving"
    ...     times: int = 1
    >>> from_json(to_json(HalvingConfig(times=3))).times
    3
    """
    problem = _class_problem(config) or _name_problem(config)
    if problem is not None:
        raise ConfigError(problem)
    _KINDS[config.__name__] = config
    return config


def value_kinds() -> Mapping[str, type[attrs.AttrsInstance]]:
    """Return the class that each kind of a JSON object stands for."""
    return _KINDS


def _class_problem(config: object) -> Problem | None:
    if not isinstance(config, type) or not issubclass(config, BaseConfig):
        return Problem(field="config", value=config, expected="a class derived from BaseConfig")
    if "__attrs_attrs__" not in vars(config):
        return Problem(
            module=_path(config),
            field="config",
            value=config,
            expected="a class made by attrs",
            remedy="write @register_config above @attrs.frozen(kw_only=True)",
            sentence="attrs has not made the class yet",
        )
    name: object = getattr(config, "name", None)
    if not isinstance(name, str) or not name:
        expected = "the short name of the algorithm"
        return Problem(module=_path(config), field="name", value=name, expected=expected)
    if KIND in (attribute.name for attribute in attrs.fields(config)):
        expected = "left to JSON, which names the class with it"
        return Problem(module=_path(config), field=KIND, value=Found("a field"), expected=expected)
    return None


def _name_problem(config: type[BaseConfig]) -> Problem | None:
    name = config.__name__
    taken: type | None = _KINDS.get(name) or ENUMS.get(name)
    is_again = taken is not None and _path(taken) == _path(config)
    if (taken is None or is_again) and name != MAPPING:
        return None
    other = "JSON itself" if taken is None else taken.__module__
    return Problem(
        module=_path(config),
        field="config",
        value=Found(f"{name} of {config.__module__} and of {other}"),
        expected="one class of each name",
        remedy="rename one of the two",
        sentence=f"the name {name} of a class in {config.__module__} is taken by {other}",
    )


def _path(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
