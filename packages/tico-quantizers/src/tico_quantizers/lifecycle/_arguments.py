"""What the arguments of prepare and convert have to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs

from tico_config import BaseConfig, ConfigError, Problem, UnsupportedError
from tico_modules import Offload
from tico_quantizers.protocol import AnyQuantizer
from tico_quantizers.registry import Registry


def require_config(config: object) -> None:
    """Refuse what is no config.

    Raises:
        ConfigError: with an example of one.
    """
    if not isinstance(config, BaseConfig):
        remedy = "pass for example PTQConfig()"
        raise ConfigError(Problem(field="quant_config", value=config, expected="a config", remedy=remedy))


@attrs.frozen
class _Rule:
    fits: Callable[[object], bool]
    expected: str
    remedy: str | None = None


_RULES: Mapping[str, _Rule] = {
    "args": _Rule(
        lambda value: value is None or isinstance(value, tuple), "a tuple or None", "a single input x is (x,)"
    ),
    "kwargs": _Rule(lambda value: value is None or isinstance(value, Mapping), "a dict or None"),
    "inplace": _Rule(lambda value: isinstance(value, bool), "True or False"),
    "offload": _Rule(lambda value: value is None or isinstance(value, Offload), "an Offload or None"),
    "registry": _Rule(lambda value: isinstance(value, Registry), "a Registry"),
}


def require_arguments(**arguments: object) -> None:
    """Refuse arguments of the wrong type.

    Raises:
        ConfigError: naming all of them.
    """
    problems = [
        Problem(field=name, value=value, expected=_RULES[name].expected, remedy=_RULES[name].remedy)
        for name, value in arguments.items()
        if not _RULES[name].fits(value)
    ]
    if problems:
        raise ConfigError(*problems)


def require_possible_place(quantizer: AnyQuantizer, config: BaseConfig, *, inplace: bool) -> None:
    """Refuse to work in place for an algorithm that cannot.

    Raises:
        UnsupportedError: with the call that works.
    """
    if inplace and not quantizer.works_in_place:
        expected = f"False for {type(config).__name__}, which makes a new graph of the model"
        call = "prepared = prepare(model, config, args=…, kwargs=…, inplace=False)"
        remedy = f"call {call} and go on with what it returns"
        sentence = f"{type(config).__name__} makes a new graph of the model, so it needs inplace=False"
        raise UnsupportedError(
            Problem(field="inplace", value=inplace, expected=expected, remedy=remedy, sentence=sentence)
        )
