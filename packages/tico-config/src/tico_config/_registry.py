"""The kinds of values that JSON can name: those of this package, and every registered config."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final, TypeVar

import attrs

from tico_config._base_config import BaseConfig
from tico_config._deployment_profile import DeploymentProfile
from tico_config._dtype import DType
from tico_config._errors import ConfigError
from tico_config._float_format import FP8, MXFP4, MXFP6, MXFP8, MXINT8, NVFP4
from tico_config._grid import PerChannel, PerGroup, PerTensor, PerToken, QScheme, SuperBlock
from tico_config._grid_rule import GridRule, LayerRule
from tico_config._observer_specs import (
    CustomObserverSpec,
    EMASpec,
    EntropySpec,
    HessianMSESpec,
    HistogramSpec,
    MinMaxSpec,
    MSESpec,
    NoQuant,
    PercentileSpec,
)
from tico_config._problem import Found, Problem
from tico_config._quant_spec import QuantSpec

C = TypeVar("C", bound=BaseConfig)
S = TypeVar("S", bound=CustomObserverSpec)

KIND: Final = "kind"
"""The key of a JSON object that names the class of its value."""

MAPPING: Final = "Mapping"
"""The kind of a mapping."""

_VALUES: Final[tuple[type[attrs.AttrsInstance], ...]] = (
    DType,
    FP8,
    MXFP4,
    MXFP6,
    MXFP8,
    MXINT8,
    NVFP4,
    PerTensor,
    PerChannel,
    PerGroup,
    SuperBlock,
    PerToken,
    MinMaxSpec,
    EMASpec,
    HistogramSpec,
    PercentileSpec,
    MSESpec,
    HessianMSESpec,
    EntropySpec,
    NoQuant,
    QuantSpec,
    GridRule,
    LayerRule,
    DeploymentProfile,
)
ENUMS: Final[Mapping[str, type[enum.Enum]]] = {kind.__name__: kind for kind in (QScheme,)}
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
    _register(config, _config_problem(config))
    return config


def register_observer_spec(spec: type[S]) -> type[S]:
    """Let `to_json` and `from_json` handle a class of observer specs: a decorator, above that of attrs.

    As for `register_config`, the name of the class stands in the text.

    Raises:
        ConfigError: it is not derived from `CustomObserverSpec`, or another class has its name.

    >>> from tico_config import UINT8, CustomObserverSpec, PTQConfig, affine, from_json, to_json
    >>> @register_observer_spec
    ... @attrs.frozen
    ... class CuttingSpec(CustomObserverSpec):
    ...     share: float = 0.99
    >>> config = PTQConfig(activation=affine(UINT8, observer=CuttingSpec(share=0.9)))
    >>> from_json(to_json(config)) == config
    True
    """
    _register(spec, _class_problem(spec, CustomObserverSpec, "register_observer_spec"))
    return spec


def _register(kind: type[attrs.AttrsInstance], problem: Problem | None) -> None:
    problem = problem or _name_problem(kind)
    if problem is not None:
        raise ConfigError(problem)
    _KINDS[kind.__name__] = kind


def value_kinds() -> Mapping[str, type[attrs.AttrsInstance]]:
    """Return the class that each kind of a JSON object stands for."""
    return _KINDS


def _config_problem(config: object) -> Problem | None:
    problem = _class_problem(config, BaseConfig, "register_config")
    if problem is not None or not isinstance(config, type):
        return problem
    name: object = getattr(config, "name", None)
    if not isinstance(name, str) or not name:
        expected = "the short name of the algorithm"
        remedy = 'write for example name: ClassVar[str] = "rounding" into the class'
        return Problem(module=_path(config), field="name", value=name, expected=expected, remedy=remedy)
    return None


def _class_problem(kind: object, base: type[attrs.AttrsInstance], decorator: str) -> Problem | None:
    field = "config" if base is BaseConfig else "spec"
    if not isinstance(kind, type) or not issubclass(kind, base):
        return Problem(field=field, value=kind, expected=f"a class derived from {base.__name__}")
    if "__attrs_attrs__" not in vars(kind):
        return Problem(
            module=_path(kind),
            field=field,
            value=kind,
            expected="a class made by attrs",
            remedy=f"write @{decorator} above @attrs.frozen(kw_only=True)",
            sentence="attrs has not made the class yet",
        )
    if KIND in (attribute.name for attribute in attrs.fields(kind)):
        expected = "left to JSON, which names the class with it"
        return Problem(module=_path(kind), field=KIND, value=Found("a field"), expected=expected)
    return None


def _name_problem(config: type) -> Problem | None:
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
