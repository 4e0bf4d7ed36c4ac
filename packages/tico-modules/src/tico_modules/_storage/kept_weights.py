"""Weights that are dequantized once for several uses, or read as other values than those of their codes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from tico_modules._storage.packed_weight import PackedWeight


@contextmanager
def keep_dequantized(root: nn.Module) -> Iterator[None]:
    """Keep the float values of each packed weight in `root` from its first use until the context ends.

    That takes 4 bytes a weight. Buffers that change meanwhile are not seen; the values are not to be changed.

    >>> import torch
    >>> from tico_config import DType
    >>> weight = PackedWeight.round_to_nearest(torch.eye(2), DType.uint(4), symmetric=False, group_size=None)
    >>> with keep_dequantized(weight):
    ...     weight.dequantize() is weight.dequantize()
    True
    """
    weights = [each for each in root.modules() if isinstance(each, PackedWeight) and each._kept is None]
    try:
        for weight in weights:
            weight._kept = []
        yield
    finally:
        for weight in weights:
            vars(weight).pop("_kept", None)


@contextmanager
def read_as(values: Mapping[PackedWeight, Tensor]) -> Iterator[None]:
    """Let each packed weight be read as the float tensor in `values`, of its shape, until the context ends.

    The codes stay as they are, and kernels that multiply by codes still do.

    >>> import torch
    >>> from tico_config import DType
    >>> weight = PackedWeight.round_to_nearest(torch.eye(2), DType.uint(4), symmetric=False, group_size=None)
    >>> with read_as({weight: torch.full((2, 2), 0.3)}):
    ...     weight.rows(torch.tensor([1]))
    tensor([[0.3000, 0.3000]])
    """
    before = {weight: weight._kept for weight in values}
    try:
        for weight, value in values.items():
            weight._kept = [value]
        yield
    finally:
        for weight, kept in before.items():
            vars(weight).pop("_kept", None)
            if kept is not None:
                weight._kept = kept
