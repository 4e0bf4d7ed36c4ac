"""The logits that a model gives for one sample."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from tico_quantizers.calibration import Call, Replay
from tico_quantizers.evaluation import logits_of, rows_of

Select = Callable[[Tensor], Tensor]


def run(model: nn.Module, call: Call) -> tuple[Tensor, Select]:
    """Return the logits that `model` gives for `call`, and what selects the rows of real tokens."""
    (args, kwargs, autocast), *_ = Replay([call], {})
    with autocast.again():
        torch.manual_seed(0)  # all models draw the same numbers
        output: object = model(*args, **{**kwargs, **_without_cache(model)})
    return logits_of(output, "model"), rows_of(kwargs)


def _without_cache(model: nn.Module) -> Mapping[str, object]:
    """Return the argument by which a model makes no cache, if it takes one: blocks could not be run again."""
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes else {}
