"""Tensors that steps of a descent move, in the modules that compute with them, until the best stay."""

from tico_quantizers.tuning._descent import Adam, Descent, Loss, Schedule, Split, descend
from tico_quantizers.tuning._factors import Factor, scales_of
from tico_quantizers.tuning._loans import Loan, lent
from tico_quantizers.tuning._recomputing import recomputed
from tico_quantizers.tuning._rounding import LearnedRounding
from tico_quantizers.tuning._tree_state import TreeState

__all__ = [
    "Adam",
    "Descent",
    "Factor",
    "LearnedRounding",
    "Loan",
    "Loss",
    "Schedule",
    "Split",
    "TreeState",
    "descend",
    "lent",
    "recomputed",
    "scales_of",
]
