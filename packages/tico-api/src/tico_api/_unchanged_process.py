"""Work on a model that leaves no trace in the process."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from tico_config import Found, Problem, UnsupportedError


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Run the block without gradients, outside of inference mode, and put every random state back.

    Modules of the user's may draw random numbers when they are run again; and what is made in inference
    mode could never be trained or written to.
    """
    numbers = random.getstate()
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        random.setstate(numbers)


def detached_copy(model: nn.Module) -> nn.Module:
    """Return a deep copy of `model`.

    Raises:
        UnsupportedError: a part of it cannot be copied.
    """
    try:
        return copy.deepcopy(model)
    except (TypeError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "deepcopy" not in str(error):
            raise
        found = Found(f"one that cannot be copied ({error})")
        expected, remedy = "a model that copy.deepcopy takes", "pass inplace=True"
        raise UnsupportedError(
            Problem(field="model", value=found, expected=expected, remedy=remedy)
        ) from error
