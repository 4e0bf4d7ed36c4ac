"""prepare and convert: the two calls around the user's calibration."""

from __future__ import annotations

import copy
from collections.abc import Mapping

from torch import nn

from tico_config import (
    BaseConfig,
    ConfigError,
    Found,
    GPTQConfig,
    LifecycleError,
    Problem,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
    UnsupportedError,
)
from tico_quantizers import (
    AnyPrepared,
    Edit,
    Example,
    GPTQQuantizer,
    Prepared,
    Registry,
    installed_entries,
    named_modules,
    quantizer_entry,
    remember,
)
from tico_wrapq import PTQQuantizer

BUILT_IN = Registry(
    (
        quantizer_entry(GPTQConfig, GPTQQuantizer),
        quantizer_entry(PTQConfig, PTQQuantizer),
    )
)
_COMING = (PT2EConfig, SmoothQuantConfig)
_STATE = "_tico_prepared"


def prepare(
    model: nn.Module,
    quant_config: BaseConfig,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    inplace: bool = True,
    *,
    registry: Registry | None = None,
) -> nn.Module:
    """Make `model` ready for calibration: run data through the result, then call `convert` with it.

    Args:
        model: a float model, or one that another algorithm has converted.
        quant_config: says which algorithm, and how.
        args: positional example inputs, for the algorithms that need to see the graph.
        kwargs: example inputs by keyword.
        inplace: change and return `model` itself; if it is to be replaced as a whole (a lone `nn.Linear`),
            the replacement is returned. With False, `model` is not touched and a copy is returned.
        registry: which quantizer serves which config; by default those of this library and of installed
            packages.

    Raises:
        UnsupportedError: `model` is no module, or a part of it cannot be handled.
        ConfigError: the config does not fit the model.
        LifecycleError: the model is prepared already.

    After an error the model is as it was before.

    >>> import torch
    >>> model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), PTQConfig())
    >>> y = model(torch.ones(2, 4))
    >>> type(convert(model)[0]).__name__
    'QuantizedLinear'
    """
    _require_model(model)
    _require_config(quant_config)
    _require_inputs(args, kwargs)
    if _state(model) is not None:
        found = Found(f"one prepared with {type(_state_of(model).config).__name__}")
        remedy = "call convert(model) first"
        raise LifecycleError(
            Problem(field="model", value=found, expected="a model that is not prepared", remedy=remedy)
        )
    quantizer = (registry or _registry(quant_config)).quantizer(quant_config)
    example = None if args is None and kwargs is None else Example(args=args or (), kwargs=kwargs or {})
    work = model if inplace else copy.deepcopy(model)
    with Edit() as edit:
        root, prepared = quantizer.start(work, example, edit)
        edit.set_attribute(root, _STATE, prepared)
    return root


def convert(model: nn.Module, quant_config: BaseConfig | None = None, inplace: bool = True) -> nn.Module:
    """Finish what `prepare` began: put integers in the place of floats.

    Args:
        model: what `prepare` returned, after calibration data were run through it.
        quant_config: may be left out; if given, it must equal the one given to `prepare`.
        inplace: change and return `model` itself (or its replacement, where `prepare` returned one). With
            False, `model` stays prepared and a converted copy is returned.

    Raises:
        LifecycleError: the model is not prepared, or has been converted already.
        ConfigError: `quant_config` is not the one that the model was prepared with.
        CalibrationError: no data were run through the model, or through a part of it.
        NumericsError: weights or data hold values that no grid can represent.

    After an error the model is as it was before, calibration included.
    """
    _require_model(model)
    prepared = _state_of(model)
    if quant_config is not None and quant_config != prepared.config:
        expected = f"the config given to prepare, {prepared.config!r}"
        remedy = "leave it out, or prepare the model with it"
        raise ConfigError(
            Problem(field="quant_config", value=Found(repr(quant_config)), expected=expected, remedy=remedy)
        )
    work = model if inplace else copy.deepcopy(model)
    with Edit() as edit:
        converted = _state_of(work).convert(work, edit)
        edit.on_commit(lambda: vars(work).pop(_STATE))
        remember(converted.modules, converted.report)
    return converted.root


def _state(model: nn.Module) -> AnyPrepared | None:
    state: object = vars(model).get(_STATE)
    return state if isinstance(state, Prepared) else None


def _state_of(model: nn.Module) -> AnyPrepared:
    state = _state(model)
    if state is None:
        inner = [path for path, module in named_modules(model) if _state(module) is not None]
        found = Found(f"one whose part {inner[0]!r} is" if inner else "one that is not, or not any more")
        remedy = f"convert that part, model.{inner[0]}" if inner else "call prepare(model, config) first"
        raise LifecycleError(Problem(field="model", value=found, expected="a prepared model", remedy=remedy))
    return state


def _registry(config: BaseConfig) -> Registry:
    if isinstance(config, _COMING):
        found = Found(f"{type(config).__name__}, which is not available yet")
        served = ", ".join(kind.__name__ for kind in BUILT_IN.config_types)
        raise UnsupportedError(Problem(field="quant_config", value=found, expected=f"one of {served}"))
    return BUILT_IN.with_entries(installed_entries())


def _require_model(model: object) -> None:
    if not isinstance(model, nn.Module):
        raise UnsupportedError(Problem(field="model", value=model, expected="an nn.Module"))
    meta = [
        Problem(module=path, field="device", value=Found("meta"), expected="a device with data")
        for path, module in named_modules(model)
        if any(tensor.is_meta for tensor in (*module.parameters(False), *module.buffers(False)))
    ]
    if meta:
        raise UnsupportedError(*meta)


def _require_config(config: object) -> None:
    if not isinstance(config, BaseConfig):
        remedy = "pass for example PTQConfig()"
        raise ConfigError(Problem(field="quant_config", value=config, expected="a config", remedy=remedy))


def _require_inputs(args: object, kwargs: object) -> None:
    problems = []
    if args is not None and not isinstance(args, tuple):
        remedy = "a single input x is (x,)"
        problems.append(Problem(field="args", value=args, expected="a tuple or None", remedy=remedy))
    if kwargs is not None and not isinstance(kwargs, Mapping):
        problems.append(Problem(field="kwargs", value=kwargs, expected="a dict or None"))
    if problems:
        raise ConfigError(*problems)
