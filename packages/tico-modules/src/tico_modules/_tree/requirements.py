"""Checks of arguments that are to be modules, or layers with a weight to round."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tico_config import Found, Problem, UnsupportedError


def require_module(value: object, field: str = "model") -> None:
    """Refuse anything but a module.

    Raises:
        UnsupportedError: `value`, the argument `field`, is none.
    """
    if not isinstance(value, nn.Module):
        raise UnsupportedError(Problem(field=field, value=value, expected="an nn.Module"))


def float_weight(layer: object, kind: type[nn.Module]) -> Tensor:
    """Return the weight of `layer`, which is of the class `kind`, to be rounded.

    Raises:
        UnsupportedError: it is of another class, or has no weight of floats with values.
    """
    if not isinstance(layer, kind):
        found = Found(f"one of the class {type(layer).__name__}")
        raise UnsupportedError(Problem(field="layer", value=found, expected=f"an nn.{kind.__name__}"))
    weight: object = getattr(layer, "weight", None)
    if not isinstance(weight, Tensor) or is_lazy(weight):
        remedy = "call a lazy layer once, so that it makes its weight"
        found = Found(f"none yet in a {type(layer).__name__}")
        raise UnsupportedError(Problem(field="weight", value=found, expected="a tensor", remedy=remedy))
    if weight.is_meta or not weight.is_floating_point():
        hint = "load the weights first; on the meta device there are none" if weight.is_meta else None
        found, expected = Found(f"one of {weight.dtype} on {weight.device}"), "a tensor of floats with values"
        raise UnsupportedError(Problem(field="weight", value=found, expected=expected, remedy=hint))
    return weight
