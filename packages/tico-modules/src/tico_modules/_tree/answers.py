"""What a replacement answers about itself: what the float module answered."""

from __future__ import annotations

from typing import ClassVar, TypeVar

import torch
from torch import Tensor, nn

HISTORY = "runs"
"""The attribute that holds the runs of a module, which are no answer of it."""

M = TypeVar("M", bound=nn.Module)


class StandIn(nn.Module):
    """A module in the place of another one.

    `unsaved` names tensors that hold no values of the model, so that files leave them out.
    """

    unsaved: ClassVar[frozenset[str]] = frozenset()
    stands_beside: ClassVar[bool] = False
    """Whether it is a child of the module that it serves, which stays, and not in the module's place."""
    has_own_line: ClassVar[bool] = False
    """Whether a report has a line for it, where it stands beside the module that it serves."""

    is_folded: ClassVar[bool] = False
    """Whether what the float module did is part of the weights of another module now."""

    def take_dtype(self, dtype: torch.dtype) -> None:
        """Answer from now on that the float weight has `dtype`, where the module has one to answer for."""

    @property
    def stands_for(self) -> nn.Module:
        """The module that answers questions about itself: this one, or the float one that it wraps."""
        return self


def stands_beside(module: nn.Module) -> bool:
    """Return whether `module` is a child of the module that it serves, and not in its place.

    >>> stands_beside(nn.Identity())
    False
    """
    return isinstance(module, StandIn) and module.stands_beside


def shares_line(module: nn.Module) -> bool:
    """Return whether a report tells of `module` in the line of the module that it stands beside."""
    return isinstance(module, StandIn) and module.stands_beside and not module.has_own_line


def answer_for(old: nn.Module, new: M) -> M:
    """Let `new` answer what `old` answers about itself, such as ``stride`` or ``eps``, and return it.

    These are the public attributes of `old`, or of the float module that it wraps, but no parameters,
    buffers or modules, except where it has None in their place. What `new` has of its own stays.

    >>> answer_for(nn.Conv1d(2, 3, 5, stride=4), nn.Identity()).stride
    (4,)
    """
    asked = old.stands_for if isinstance(old, StandIn) else old
    own = {HISTORY, *vars(new), *new._parameters, *new._buffers, *new._modules}
    own |= {name for kind in type(new).__mro__ for name in vars(kind)}
    answers = {**_left_out(asked), **vars(asked)}
    answers = {name: value for name, value in answers.items() if not name.startswith("_")}
    vars(new).update({name: value for name, value in answers.items() if name not in own})
    return new


def _left_out(module: nn.Module) -> dict[str, object]:
    """Return the parameters and buffers that `module` might have and has not."""
    tensors: dict[str, Tensor | None] = {**module._parameters, **module._buffers}
    return {name: None for name, tensor in tensors.items() if tensor is None}
