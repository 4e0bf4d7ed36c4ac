"""Computations that the function modes of torch see as one function, and not by their many small parts."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.overrides import has_torch_function_unary


def is_watched(x: object) -> bool:
    """Tell whether a function mode of torch is to see what is computed from `x` as one function.

    Not in a trace or a compiled function, whose graphs are made of torch's own operators.

    >>> is_watched(torch.ones(2))
    False
    """
    return type(x) is Tensor and has_torch_function_unary(x) and not torch.compiler.is_compiling()
