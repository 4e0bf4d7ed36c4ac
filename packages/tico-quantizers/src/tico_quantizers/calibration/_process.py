"""Runs of a model that leave no trace in the process."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def unchanged_process() -> Iterator[None]:
    """Run the block without gradients, outside of inference mode, and put every random state back.

    The block may run the user's modules again, which may draw random numbers. Tensors made in inference mode
    could never be trained or written to.
    """
    numbers = random.getstate()
    started: bool = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    devices = range(torch.cuda.device_count()) if started else ()
    try:
        with torch.random.fork_rng(devices), torch.inference_mode(mode=False), torch.no_grad():
            yield
    finally:
        random.setstate(numbers)
