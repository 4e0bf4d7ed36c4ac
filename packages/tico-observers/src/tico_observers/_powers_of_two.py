"""Powers of two and binary logarithms, exact on every machine, which `pow`, `exp2` and `ldexp` are not."""

from __future__ import annotations

import torch
from torch import Tensor

EXPONENT_OF_ZERO = -1075


def floor_log2(x: Tensor) -> Tensor:
    """Return the whole part of the base-2 logarithm of the magnitude of finite `x`, int64; -1075 for 0.

    >>> floor_log2(torch.tensor([1.0, -7.9, 0.0])).tolist()
    [0, 2, -1075]
    """
    # frexp gives a mantissa from 1/2 to 1, hence one exponent more.
    return torch.where(x == 0, EXPONENT_OF_ZERO, torch.frexp(x).exponent.to(torch.int64) - 1)


def power_of_two(exponent: Tensor) -> Tensor:
    """Return 2 to the power of each int64 exponent, moved into -1022 to 1023, as float64 made from its bits.

    >>> power_of_two(torch.tensor([-1, 3])).tolist()
    [0.5, 8.0]
    """
    return ((exponent.clamp(-1022, 1023) + 1023) << 52).view(torch.float64)
