"""Weights that are dequantized once for several uses."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

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
    weights = [module for module in root.modules() if isinstance(module, PackedWeight)]
    try:
        for weight in weights:
            weight._kept = []
        yield
    finally:
        for weight in weights:
            vars(weight).pop("_kept", None)
