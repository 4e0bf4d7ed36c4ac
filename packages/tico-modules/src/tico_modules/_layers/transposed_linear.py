"""The linear layer of transformers with a transposed weight, recognized without importing transformers."""

from __future__ import annotations

from torch import Tensor, nn


class _Named(type):
    """Makes `isinstance` go by the name of a class, so that its module need not be imported."""

    def __instancecheck__(cls, instance: object) -> bool:
        names = ((kind.__module__, kind.__name__) for kind in type(instance).__mro__)
        return ("transformers.pytorch_utils", "Conv1D") in names


class TransposedLinear(nn.Module, metaclass=_Named):
    """``transformers.pytorch_utils.Conv1D``: ``y = x W + bias`` with W of shape (in, out)."""

    weight: Tensor
