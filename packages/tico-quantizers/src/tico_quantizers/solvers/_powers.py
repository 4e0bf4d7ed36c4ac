"""Powers whose bits do not depend on the number of threads."""

from __future__ import annotations

import torch
from torch import Tensor

# Powers of so few elements are one piece of work, whatever the number of threads.
_PIECE = 2**14


def power(x: Tensor, exponent: float) -> Tensor:
    """Return ``x ** exponent`` for a vector `x` of at least one element.

    >>> power(torch.tensor([4.0, 9.0]), 0.5).tolist()
    [2.0, 3.0]
    """
    return torch.cat([x[start : start + _PIECE].pow(exponent) for start in range(0, len(x), _PIECE)])
