"""What must hold before prepare and convert do anything."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import attrs
from torch import Tensor, nn

from tico_config import BaseConfig, ConfigError, Found, LifecycleError, Problem, UnsupportedError
from tico_modules import RestorableModule, named_modules, runs_of
from tico_quantizers.calibration import is_watched
from tico_quantizers.protocol import AnyPrepared, AnyQuantizer, Prepared
from tico_quantizers.registry import Registry

STATE = "_tico_prepared"


def require_model(model: object) -> None:
    """Refuse what is no module with data.

    Raises:
        UnsupportedError: naming every module on the meta device.
    """
    if not isinstance(model, nn.Module):
        raise UnsupportedError(Problem(field="model", value=model, expected="an nn.Module"))
    meta = [
        Problem(
            module=path or type(module).__name__,
            field="device",
            value=Found("meta"),
            expected="a device with data",
            sentence="its parameters are on the meta device, which has no data",
        )
        for path, module in named_modules(model)
        if _has_meta(module)
    ]
    if meta:
        raise UnsupportedError(*meta)


def _has_meta(module: nn.Module) -> bool:
    parameters: dict[str, nn.Parameter | None] = module._parameters
    buffers: dict[str, Tensor | None] = module._buffers
    stored = (*parameters.values(), *buffers.values())
    return any(tensor is not None and tensor.is_meta for tensor in stored)


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
        expected = f"False for {type(config).__name__}, which makes a graph of its own of the model"
        call = "prepared = prepare(model, config, args=…, kwargs=…, inplace=False)"
        remedy = f"call {call} and go on with what it returns"
        sentence = f"{type(config).__name__} makes a graph of its own of the model, so it needs inplace=False"
        raise UnsupportedError(
            Problem(field="inplace", value=inplace, expected=expected, remedy=remedy, sentence=sentence)
        )


def prepared_state(model: nn.Module) -> AnyPrepared | None:
    """Return what `prepare` has left with this very module, or None."""
    state: object = vars(model).get(STATE)
    return state if isinstance(state, Prepared) else None


def require_unprepared(model: nn.Module) -> None:
    """Refuse a model that is prepared, holds a part that is, or is a part of one that is.

    Raises:
        LifecycleError: naming the part.
    """
    for path, module in named_modules(model):
        state = prepared_state(module)
        if state is not None or _is_watched(module):
            whole = "a part of a prepared model" if state is None else _prepared_with(state)
            found = Found(f"one whose part {path!r} is {whole}" if path else f"one that is {whole}")
            sentence = f"the part {path!r} of the model is {whole}" if path else f"the model is {whole}"
            remedy = "call convert with what prepare returned first"
            expected = "a model that is not prepared"
            raise LifecycleError(
                Problem(
                    module=path or None,
                    field="model",
                    value=found,
                    expected=expected,
                    remedy=remedy,
                    sentence=sentence,
                )
            )


def _prepared_with(state: AnyPrepared) -> str:
    return f"prepared with {type(state.config).__name__}"


def _is_watched(module: nn.Module) -> bool:
    """Whether an algorithm is calibrating this module, by a wrapper or by hooks."""
    wrapped = isinstance(module, RestorableModule) and module.is_calibrating
    return wrapped or is_watched(module)


def state_of(model: nn.Module) -> AnyPrepared:
    """Return what `prepare` has left with the model.

    Raises:
        LifecycleError: nothing; the error tells what the model is instead.
    """
    state = prepared_state(model)
    if state is not None:
        return state
    inner = [path for path, module in named_modules(model) if prepared_state(module) is not None]
    if inner:
        found, remedy = f"only the part {inner[0]!r} of the model is prepared", f"convert model.{inner[0]}"
    elif any(runs_of(module) for _, module in named_modules(model)):
        found, remedy = "the model is converted already", "call prepare(model, config) to go on with it"
    else:
        found, remedy = (
            "the model is not prepared",
            "call prepare(model, config) first, and convert what it returns",
        )
    raise LifecycleError(
        Problem(field="model", value=Found(found), expected="a prepared model", remedy=remedy, sentence=found)
    )
