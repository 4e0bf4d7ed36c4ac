"""A forward of a class, run on what another module holds."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Forward(Protocol):
    """A forward of any class, which takes the module first."""

    def __call__(self, module: nn.Module, /, *args: object, **kwargs: object) -> Tensor:
        """Return the output of `module`."""


def call_as(
    kind: type[nn.Module],
    holder: nn.Module,
    replaced: Mapping[str, object],
    args: tuple[object, ...],
    kwargs: Mapping[str, object],
    forward: Forward | None = None,
) -> Tensor:
    """Return what `forward`, by default that of `kind`, gives for an object of that class.

    The object has the attributes of `holder`, except those in `replaced`. It lasts as long as the call.

    >>> import torch
    >>> call_as(nn.Linear, nn.Identity(), {"weight": torch.eye(2) * 3, "bias": None}, (torch.ones(2),), {})
    tensor([3., 3.])
    """
    lent = kind.__new__(kind)
    vars(lent).update(vars(holder))
    vars(lent).update(replaced)
    run: Forward = kind.forward if forward is None else forward
    return run(lent, *args, **kwargs)
