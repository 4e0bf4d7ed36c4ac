"""How far one distribution is from another."""

from __future__ import annotations

import torch
from torch import Tensor


def divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Return what each class adds to KL(p ‖ q) in nats, for distributions p by `expected` and q by `found`.

    Both are logits (rows, classes), and the sum of a row of the result is its divergence (Kullback and
    Leibler 1951, section 2). It is computed in the dtype of the logits, and has derivatives.

    >>> round(float(divergence(torch.zeros(1, 2), torch.tensor([[0.0, 1.0986]])).sum()), 4)
    0.1438
    """
    p, q = (each.log_softmax(-1) for each in (expected, found))
    # Where p is 0 its logarithm is minus infinity, and the product counts nothing.
    return torch.where(p.isneginf(), 0.0, p.exp() * (p - q))
