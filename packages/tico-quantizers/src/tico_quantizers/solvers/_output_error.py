"""How much the output of a layer changes with its weight, told by the Gram matrix of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

# Products over at most 512 terms do not depend on the thread count.
_TERMS = 512


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """Return tr(D H Dᵀ): how far the change D of a weight moves the outputs, squared and summed.

    `change` is (rows, columns), `gram` is H = XᵀX (columns, columns), both float32; the result, a float64
    scalar, is the same for every number of threads.

    >>> output_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).item()
    7.0
    """
    return row_errors(change, gram).view(1, -1).sum(1)[0]


def row_errors(change: Tensor, gram: Tensor) -> Tensor:
    """Return d H dᵀ for each row d of `change`, float64: what each row adds to `output_error`."""
    # The product of a matrix and a single vector depends on the thread count: a row of zeros prevents it.
    padded = torch.cat([change, change.new_zeros(1, change.shape[1])])
    moved = torch.zeros_like(padded)
    for start in range(0, len(gram), _TERMS):
        moved += padded[:, start : start + _TERMS] @ gram[start : start + _TERMS]
    return moved.mul_(padded).sum(1, dtype=torch.float64)[:-1]
