"""What a model or a block gives, as rows of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map_only

from tico_config import CalibrationError, Found, LifecycleError, Problem
from tico_modules import is_prepared
from tico_quantizers.calibration import is_mask_name, real_tokens, require_evaluation_mode, tensor_leaves


def require_finished(field: str, model: nn.Module) -> None:
    """Refuse a model that is prepared, which would learn from what it is evaluated on, or in training mode.

    Raises:
        LifecycleError: it is prepared.
        CalibrationError: it is in training mode.
    """
    if is_prepared(model):
        raise LifecycleError(
            Problem(
                field=field,
                value=Found("a prepared model"),
                expected="a float model, or what convert has returned",
                sentence=f"{field} is prepared, and would learn from what it is evaluated on",
                remedy="call convert(model, inplace=False) first, and evaluate what it returns",
            )
        )
    require_evaluation_mode(model)


def device_of(model: nn.Module) -> torch.device:
    """Return where the first tensor of `model` is that is not on the meta device."""
    tensors = (each.device for each in (*model.parameters(), *model.buffers()) if not each.is_meta)
    return next(tensors, torch.device("cpu"))


def called(model: nn.Module, args: tuple[object, ...], kwargs: Mapping[str, object]) -> object:
    """Return what `model` gives for the arguments, put on its device, always with the same random numbers."""
    torch.manual_seed(0)  # both draw the same numbers
    args, kwargs = tree_map_only(Tensor, lambda x: x.to(device_of(model)), (args, dict(kwargs)))
    return model(*args, **kwargs)


def first_output(output: object) -> Tensor | None:
    """Return the logits of what a model gives; else the first tensor with rows of floats in it, if any."""
    logits: object = getattr(output, "logits", None)
    if isinstance(logits, Tensor):
        return logits
    found = (each for each in tensor_leaves(output) if each.is_floating_point() and each.ndim > 1)
    return next(found, None)


def logits_of(output: object, field: str) -> Tensor:
    """Return the logits of what a model gives.

    Raises:
        CalibrationError: it gives no tensor of floats.
    """
    found = first_output(output)
    if found is None:
        expected = "a model whose output has logits, or is a tensor of floats with rows"
        raise CalibrationError(Problem(field=field, value=Found(type(output).__name__), expected=expected))
    return found


Select = Callable[[Tensor], Tensor]


def rows_of(kwargs: Mapping[str, object]) -> Select:
    """Return what gives the rows (rows, features) of a tensor (samples, tokens, features) that are real.

    The masks among the arguments of the call tell padding; that of a decoder goes before others.
    """
    named = sorted(kwargs.items(), key=lambda item: not item[0].startswith("decoder"))
    masks = [
        real_tokens(name, value)
        for name, value in named
        if isinstance(value, Tensor) and value.ndim == 2 and is_mask_name(name)
    ]

    def select(x: Tensor) -> Tensor:
        real = next((mask for mask in masks if mask.shape == x.shape[:2] and x.ndim > 2), None)
        return x.flatten(0, -2) if real is None else x[real.to(x.device)]

    return select
