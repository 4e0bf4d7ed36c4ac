"""prepare and convert: the two calls around the user's calibration."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from torch import nn

from tico_config import BaseConfig, ConfigError, Found, Problem
from tico_modules import PREPARED, Edit, Offload, drop_stale_ties, mark_result
from tico_quantizers.calibration import Ranks, require_same_result, unchanged_process
from tico_quantizers.lifecycle._arguments import (
    require_arguments,
    require_config,
    require_possible_place,
)
from tico_quantizers.lifecycle._copies import detached_copy
from tico_quantizers.lifecycle._model_kinds import require_model, require_modules, require_plain
from tico_quantizers.lifecycle._stages import (
    Replaced,
    note_replaced,
    require_unprepared,
    result_of,
    state_of,
)
from tico_quantizers.protocol import Example
from tico_quantizers.registry import Registry

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup


def prepare(
    model: nn.Module,
    quant_config: BaseConfig,
    args: tuple[object, ...] | None = None,
    kwargs: Mapping[str, object] | None = None,
    inplace: bool = True,
    *,
    registry: Registry,
    offload: Offload | None = None,
) -> nn.Module:
    """Make `model` ready for calibration by the quantizer that `registry` has for `quant_config`.

    This is `tico.quantization.prepare`, which says more, without a registry of its own.

    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers import GPTQQuantizer, quantizer_entry
    >>> registry = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])
    >>> model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), GPTQConfig(), registry=registry)
    """
    require_model(model)
    require_config(quant_config)
    require_arguments(args=args, kwargs=kwargs, inplace=inplace, registry=registry, offload=offload)
    again = result_of("prepare", model)
    if again is not None and again.config == quant_config and inplace:
        return again.root
    require_plain(model, inplace=inplace)
    require_unprepared(model)
    quantizer = registry.quantizer(quant_config)
    require_possible_place(quantizer, quant_config, inplace=inplace)
    require_modules(model, quantizer, quant_config)
    example = None if args is None and kwargs is None else Example(args=args or (), kwargs=kwargs or {})
    work = model if inplace else detached_copy(model)
    with unchanged_process(), Edit(offload) as edit:
        root, prepared = quantizer.start(work, example, edit)
        edit.set_attribute(root, PREPARED, prepared)
        note_replaced(work, Replaced("prepare", quant_config, root), edit)
    return root


def convert(
    model: nn.Module,
    quant_config: BaseConfig | None = None,
    inplace: bool = True,
    *,
    group: ProcessGroup | None = None,
) -> nn.Module:
    """Finish what `prepare` began: put integers in the place of floats.

    Args:
        model: what `prepare` returned, after calibration data were run through it.
        quant_config: may be left out; if given, it must equal the one given to `prepare`.
        inplace: change and return `model` itself (or what replaces it, where it is a single layer: put that
            in its place). With False, `model` stays prepared and a converted copy is returned.
        group: processes of `torch.distributed` that each ran their own batches through their own copy of the
            same prepared model. All of them have to call this; each ends with the model that one process
            would have that ran the batches of all, in the order of the ranks. None is this process alone.

    Raises:
        LifecycleError: the model is not prepared, or has been converted already; ranks of the group have
            different models or configs, or one of them fails, ends, or lags behind the group's time limit.
        ConfigError: `quant_config` is not the one that the model was prepared with, or `group` is none.
        UnsupportedError: the algorithm or the model is for one process alone.
        CalibrationError: no data were run through the model, or through a part of it; two ranks of the group
            ran the same batch.
        NumericsError: weights or data hold values that no grid can represent.

    After an error the model is as it was before, calibration included. A layer that was replaced as a whole
    gives the same result when it is converted again.
    """
    ranks = Ranks(group)
    with ranks.guard():
        ranks.require_present()
        return _converted(model, quant_config, ranks, inplace=inplace)


def convert_together(model: nn.Module, ranks: Ranks) -> nn.Module:
    """Return what `convert` makes of `model` with the other `ranks`, for a caller that guards them itself.

    Raises:
        LifecycleError: as `convert` does, and the errors below it.
        OtherRankFailed: another rank has failed.

    >>> import torch
    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers import GPTQQuantizer, quantizer_entry
    >>> from tico_quantizers.lifecycle import calibrate
    >>> registry = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])
    >>> model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), GPTQConfig(), registry=registry)
    >>> type(convert_together(calibrate(model, [torch.ones(2, 4)]), Ranks())[0]).__name__
    'QuantizedLinear'
    """
    converted = _converted(model, None, ranks, inplace=True)
    ranks.release()
    return converted


def _converted(
    model: nn.Module, quant_config: BaseConfig | None, ranks: Ranks, *, inplace: bool
) -> nn.Module:
    require_model(model)
    require_arguments(inplace=inplace)
    require_plain(model, inplace=False)
    again = result_of("convert", model)
    if again is not None:
        _require_same(quant_config, again.config)
        require_same_result(again.root, ranks)
        return again.root if inplace else detached_copy(again.root)
    config = state_of(model).config
    _require_same(quant_config, config)
    work = model if inplace else detached_copy(model)
    with unchanged_process(), Edit(state_of(work).offload) as edit:
        root = state_of(work).convert(work, edit, ranks)
        drop_stale_ties(root, edit)
        require_same_result(root, ranks)
        note_replaced(work, Replaced("convert", config, root), edit)
        edit.on_commit(lambda: vars(work).pop(PREPARED))
    mark_result(root)
    return root


def _require_same(given: BaseConfig | None, prepared: BaseConfig) -> None:
    """Refuse a config that is not the one given to prepare.

    Raises:
        ConfigError: showing both.
    """
    if given is not None and given != prepared:
        raise ConfigError(
            Problem(
                field="quant_config",
                value=Found(repr(given)),
                expected=f"the config given to prepare, {prepared!r}",
                remedy="leave it out, or prepare the model with it",
                sentence=f"convert was given {given!r}, and prepare {prepared!r}",
            )
        )
