"""Numbers for tensors on the meta device, where a module has to be run to see what it does."""

from __future__ import annotations

import math
from typing import TypeVar

import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def numbers_of(size: tuple[int, ...]) -> Tensor:
    """Return numbers from -1 to 1 that differ, always the same ones, float32 of shape `size`."""
    return (torch.arange(math.prod(size), dtype=torch.float32) * 0.7).sin().view(size)


def with_values(module: M) -> M:
    """Return `module` with numbers of our own, from 0.5 to 2.5, for what it holds itself on the meta device.

    >>> with_values(nn.BatchNorm1d(2, device="meta")).running_var
    tensor([1.5000, 2.1442])
    """
    parameters: dict[str, nn.Parameter | None] = module._parameters
    buffers: dict[str, Tensor | None] = module._buffers
    for name, weight in parameters.items():
        if weight is not None and weight.is_meta:
            parameters[name] = nn.Parameter(_values_for(weight), requires_grad=False)
    for name, buffer in buffers.items():
        if buffer is not None and buffer.is_meta:
            buffers[name] = _values_for(buffer)
    return module


def _values_for(tensor: Tensor) -> Tensor:
    return (numbers_of(tuple(tensor.shape)) + 1.5).to(tensor.dtype)
