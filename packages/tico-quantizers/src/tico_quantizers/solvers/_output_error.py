"""How much the output of a layer changes with its weight, told by the Gram matrix of its inputs."""

from __future__ import annotations

import torch
from torch import Tensor

from tico_observers.products import product, total


def output_error(change: Tensor, gram: Tensor) -> Tensor:
    """Return tr(D H Dᵀ): how far the change D of a weight moves the outputs, squared and summed.

    `change` is (rows, columns), `gram` is H = XᵀX (columns, columns), both float32; the result, a float64
    scalar, is the same for every number of threads.

    >>> output_error(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]])).item()
    7.0
    """
    return total(row_errors(change, gram))


def row_errors(change: Tensor, gram: Tensor) -> Tensor:
    """Return d H dᵀ for each row d of `change`, float64: what each row adds to `output_error`."""
    errors = product(change, gram).mul_(change)
    return errors.sum(1, dtype=torch.float64) if len(errors) > 1 else total(errors).view(1)
