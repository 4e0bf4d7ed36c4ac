"""On which axis the inputs and outputs of a module have their channels."""

from __future__ import annotations

from functools import lru_cache, singledispatch

import attrs
from torch import nn

from tico_modules import (
    QuantizedConv1d,
    QuantizedConv2d,
    QuantizedConv3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
    QuantizedEmbedding,
    QuantizedLinear,
    TransposedLinear,
    parameter,
)
from tico_wrapq.base import PointDeclaration

_LAST = (
    *(nn.Linear, nn.Embedding, nn.EmbeddingBag, nn.LayerNorm, nn.RMSNorm),
    *(TransposedLinear, QuantizedLinear, QuantizedEmbedding),
)
_SECOND = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm, nn.GroupNorm, nn.Upsample)
# By the number of axes behind the channels; with or without a batch, it counts from the last one.
_BEFORE = {
    1: (
        *(nn.Conv1d, nn.ConvTranspose1d, QuantizedConv1d, QuantizedConvTranspose1d, nn.InstanceNorm1d),
        *(nn.AvgPool1d, nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
    ),
    2: (
        *(nn.Conv2d, nn.ConvTranspose2d, QuantizedConv2d, QuantizedConvTranspose2d, nn.InstanceNorm2d),
        *(nn.AvgPool2d, nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
    ),
    3: (
        *(nn.Conv3d, nn.ConvTranspose3d, QuantizedConv3d, QuantizedConvTranspose3d, nn.InstanceNorm3d),
        *(nn.AvgPool3d, nn.MaxPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
    ),
}


@singledispatch
def channel_axis(module: nn.Module) -> int | None:
    """Return the axis of the channels, None where it depends on what the module is used for.

    >>> channel_axis(nn.Linear(2, 2)), channel_axis(nn.Conv2d(2, 2, 1)), channel_axis(nn.ReLU())
    (-1, -3, None)
    """
    if isinstance(module, _LAST):
        return -1
    if isinstance(module, _SECOND) or (isinstance(module, nn.PReLU) and module.num_parameters > 1):
        return 1
    found = (-1 - count for count, kinds in _BEFORE.items() if isinstance(module, kinds))
    return next(found, _axis_of_weight(module))


def _axis_of_weight(module: nn.Module) -> int | None:
    """Return the last axis where the module has a weight for each channel, as norms of transformers have."""
    weight = None if isinstance(module, nn.PReLU) else parameter(module, "weight")
    return None if weight is None or weight.ndim != 1 else -1


@lru_cache(maxsize=64)
def along(points: tuple[PointDeclaration, ...], axis: int | None) -> tuple[PointDeclaration, ...]:
    """Return `points` with their channels on `axis`."""
    return tuple(attrs.evolve(point, channels=axis) for point in points)
