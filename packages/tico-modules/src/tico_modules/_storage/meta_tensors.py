"""Tensors on the meta device, which have shapes and no values."""

from __future__ import annotations

from torch import Tensor

from tico_config import Found, LifecycleError, Problem


def require_values(tensor: Tensor, x: Tensor, owner: str, field: str = "weight") -> Tensor:
    """Return `tensor`, which a module of the class `owner` has as its `field`, to be used with the input `x`.

    Both may be on the meta device, to find the shape of the output.

    Raises:
        LifecycleError: only the tensor is. Not every kernel of torch for the CPU refuses that: some compute
            with whatever is in memory.
    """
    if tensor.is_meta and not x.is_meta:
        found, expected = Found("one on the meta device"), f"a {field} on {x.device}"
        remedy = "load it, or let its offloader bring it back for each module that is called"
        sentence = f"the {field} of {owner} is on the meta device and has no values, while its input has some"
        raise LifecycleError(
            Problem(field=field, value=found, expected=expected, remedy=remedy, sentence=sentence)
        )
    return tensor
