"""prepare and convert: the two calls around the user's calibration."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from tico_api._preconditions import (
    STATE,
    require_arguments,
    require_config,
    require_model,
    require_possible_place,
    require_unprepared,
    state_of,
)
from tico_api._unchanged_process import detached_copy, unchanged_process
from tico_config import (
    AWQConfig,
    BaseConfig,
    ConfigError,
    Found,
    GPTQConfig,
    Problem,
    PT2EConfig,
    PTQConfig,
    SmoothQuantConfig,
)
from tico_modules import Edit
from tico_pt2e import GPTQEverywhere, PT2EQuantizer
from tico_quantizers import (
    AWQQuantizer,
    Example,
    Registry,
    SmoothQuantQuantizer,
    installed_entries,
    quantizer_entry,
)
from tico_wrapq import PTQQuantizer

BUILT_IN = Registry(
    (
        quantizer_entry(GPTQConfig, GPTQEverywhere),
        quantizer_entry(PTQConfig, PTQQuantizer),
        quantizer_entry(PT2EConfig, PT2EQuantizer),
        quantizer_entry(SmoothQuantConfig, SmoothQuantQuantizer),
        quantizer_entry(AWQConfig, AWQQuantizer),
    )
)


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
            the replacement is returned. With False, `model` is not touched and a copy is returned. PT2E,
            which exports the model to a graph, takes False only.
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
    require_model(model)
    require_config(quant_config)
    require_arguments(args=args, kwargs=kwargs, inplace=inplace, registry=registry)
    require_unprepared(model)
    quantizer = (registry or _registry()).quantizer(quant_config)
    require_possible_place(quantizer, quant_config, inplace=inplace)
    example = None if args is None and kwargs is None else Example(args=args or (), kwargs=kwargs or {})
    work = model if inplace else detached_copy(model)
    with unchanged_process(), Edit() as edit:
        root, prepared = quantizer.start(work, example, edit)
        edit.set_attribute(root, STATE, prepared)
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
    require_model(model)
    require_arguments(inplace=inplace)
    prepared = state_of(model)
    if quant_config is not None and quant_config != prepared.config:
        expected = f"the config given to prepare, {prepared.config!r}"
        remedy = "leave it out, or prepare the model with it"
        raise ConfigError(
            Problem(field="quant_config", value=Found(repr(quant_config)), expected=expected, remedy=remedy)
        )
    work = model if inplace else detached_copy(model)
    with unchanged_process(), Edit() as edit:
        root = state_of(work).convert(work, edit)
        edit.on_commit(lambda: vars(work).pop(STATE))
    return root


def _registry() -> Registry:
    return BUILT_IN.with_entries(installed_entries())
