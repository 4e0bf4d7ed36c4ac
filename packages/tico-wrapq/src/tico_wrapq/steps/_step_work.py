"""How many multiply-accumulates the steps of a forward take."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final

from torch import Tensor

from tico_wrapq.steps._data_following import tensors_in
from tico_wrapq.steps._operators import ATTENTION, Operator

_PRODUCTS: Final = frozenset({"matmul", "bmm", "mm", "mv", "linear", "inner", "dot"})
_ADDING: Final = frozenset({"addmm", "baddbmm", "addbmm", "addmv"})
_GROUPED: Final = frozenset({"grouped_mm", "_grouped_mm"})
_MULTIPLYING: Final = _PRODUCTS | _ADDING | _GROUPED | {"einsum", ATTENTION}


def step_work(
    operator: Operator, args: Sequence[object], kwargs: Mapping[str, object], result: object
) -> int:
    """Return the multiply-accumulates of a call of torch; 0 for what multiplies no matrices.

    >>> import torch
    >>> from tico_wrapq.steps._operators import operator_named
    >>> x, y = torch.zeros(2, 3, 4), torch.zeros(2, 4, 5)
    >>> step_work(operator_named("matmul"), (x, y), {}, x @ y)
    120
    """
    if operator.name not in _MULTIPLYING and not operator.name.startswith("conv"):
        return 0
    operands = [each for each in tensors_in((tuple(args), *kwargs.values())) if each.is_floating_point()]
    if not isinstance(result, Tensor) or len(operands) < 2:
        return 0
    name, first, second = operator.name, operands[0], operands[1]
    if name == "einsum":
        return _einsum_work(args, operands)
    if name.startswith("conv"):
        # Each output takes the weights of one row; each input of a transposed one meets them.
        tensor = first if "transpose" in name else result
        return tensor.numel() * math.prod(second.shape[1:])
    if name == ATTENTION:
        return (first.numel() + result.numel()) * second.shape[-2]
    return _matrix_work(name, first, second, result)


def _matrix_work(name: str, first: Tensor, second: Tensor, result: Tensor) -> int:
    if name in _PRODUCTS:
        return result.numel() * first.shape[-1]
    if name in _ADDING:
        return result.numel() * second.shape[-1] * (second.shape[0] if name == "addbmm" else 1)
    return first.numel() * second.shape[-1] if name in _GROUPED else 0


def _einsum_work(args: Sequence[object], operands: Sequence[Tensor]) -> int:
    """Return the product of all sizes, each counted once."""
    text = args[0] if args and isinstance(args[0], str) else ""
    terms = text.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    rest = 1
    for term, each in zip(terms, operands, strict=False):
        before, dots, after = term.partition("...")
        if dots:
            rest = max(rest, math.prod(each.shape[len(before) : each.ndim - len(after)]))
            sizes |= dict(zip(before, each.shape, strict=False))
            sizes |= dict(zip(reversed(after), reversed(each.shape), strict=False))
        else:
            sizes |= dict(zip(term, each.shape, strict=False))
    return math.prod(sizes.values()) * rest if sizes else 0
