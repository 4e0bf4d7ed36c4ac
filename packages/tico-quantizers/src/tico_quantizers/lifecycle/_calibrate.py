"""calibrate: run data through a prepared model, as a loop of one's own may do instead."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sized

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tico_config import CalibrationError, ConfigError, Found, Problem
from tico_modules import Progress
from tico_quantizers.calibration import Batch, TokenMask, micro_batches
from tico_quantizers.lifecycle._model_kinds import require_model
from tico_quantizers.lifecycle._stages import calibration_of


def calibrate(
    model: nn.Module,
    batches: Iterable[Batch],
    mask: TokenMask | None = None,
    *,
    micro_batch: int | None = 1,
    show_progress: bool = True,
) -> nn.Module:
    """Run `batches` through the prepared `model`, without gradients, and return it.

    The model is called on its own device with `micro_batch` samples at a time, however many a batch has. With
    one at a time, padding is cut off, so that padding on the left, padding on the right and no padding give
    the same bits. A pass ends early where the algorithm learns nothing more from it, as with GPTQ, which runs
    the blocks again by itself.

    Args:
        model: what `prepare` returned.
        batches: what to call the model with, each a tensor, a list or tuple of arguments, or a dict of
            keyword arguments, such as a tokenizer gives. All tensors have an axis of samples first. A batch
            whose tensors differ in the number of samples is one call.
        mask: which tokens are real, for batches without an `attention_mask`. Either the name of another
            entry, which the model is given too, or a function of a batch that returns a tensor (samples,
            tokens) with 0 for padding, which the model is not given.
        micro_batch: samples a call; None takes batches as they are. With more than one, padding that some of
            the samples have stays, but counts nowhere.
        show_progress: show a bar on standard error, if that is a terminal and the extra `progress` is there.

    Raises:
        LifecycleError: the model is not prepared.
        ConfigError: `micro_batch` is no positive number.
        CalibrationError: there are no batches, though the algorithm learns from data; one is something else;
            or `mask` names padding that cannot be cut off and that the model is not told of. The batches
            before it have been counted.

    >>> from tico_config import GPTQConfig
    >>> from tico_quantizers import GPTQQuantizer, quantizer_entry
    >>> from tico_quantizers.lifecycle import convert, prepare
    >>> from tico_quantizers.registry import Registry
    >>> registry = Registry([quantizer_entry(GPTQConfig, GPTQQuantizer)])
    >>> model = prepare(nn.Sequential(nn.Linear(4, 4)).eval(), GPTQConfig(), registry=registry)
    >>> model = convert(calibrate(model, [torch.ones(2, 4), torch.zeros(1, 4)]))
    """
    require_model(model)
    calibration = calibration_of(model)
    _require_size(micro_batch)
    tensors = itertools.chain(model.parameters(), model.buffers())
    device = next((each.device for each in tensors if not each.is_meta), torch.device("cpu"))
    total = len(batches) if isinstance(batches, Sized) else None
    is_empty = True
    with (
        Progress("calibration", total=total, show=show_progress, unit="batch") as bar,
        torch.no_grad(),
        calibration.ending_early(model),
    ):
        for batch in batches:
            for arguments in micro_batches(batch, micro_batch, mask):
                args, kwargs = tree_map_only(Tensor, lambda x: x.to(device), arguments)
                model(*args, **kwargs)
                is_empty = False
            bar.step()
    if is_empty and calibration.recorders:  # without any, there is nothing to learn
        expected = "at least one batch with a real token"
        raise CalibrationError(Problem(field="batches", value=Found("none"), expected=expected))
    return model


def _require_size(micro_batch: object) -> None:
    """Refuse what is no number of samples.

    Raises:
        ConfigError: saying what it is.
    """
    is_size = isinstance(micro_batch, int) and not isinstance(micro_batch, bool) and micro_batch > 0
    if micro_batch is not None and not is_size:
        expected = "a positive number of samples, or None"
        raise ConfigError(Problem(field="micro_batch", value=micro_batch, expected=expected))
