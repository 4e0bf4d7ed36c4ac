"""Scales that cancel: moved from the channels of one module into the layers that read them."""

from tico_quantizers.equivalence._channel_scale import ChannelScale, as_channel_scale
from tico_quantizers.equivalence._folding import exact_for, fold, put_matrix
from tico_quantizers.equivalence._input_maxima import InputMaxima
from tico_quantizers.equivalence._pair_calibration import PairCalibration
from tico_quantizers.equivalence._pair_report import lines_left, scaled_pairs
from tico_quantizers.equivalence._pair_search import candidates_of, scaled_memory, undecided_in
from tico_quantizers.equivalence._passages import find_pairs
from tico_quantizers.equivalence._smoothing_pairs import (
    Candidates,
    Consumer,
    FoundPairs,
    Pair,
    alone,
    reason_against_scaling,
)

__all__ = [
    "Candidates",
    "ChannelScale",
    "Consumer",
    "FoundPairs",
    "InputMaxima",
    "Pair",
    "PairCalibration",
    "alone",
    "as_channel_scale",
    "candidates_of",
    "exact_for",
    "find_pairs",
    "fold",
    "lines_left",
    "put_matrix",
    "reason_against_scaling",
    "scaled_memory",
    "scaled_pairs",
    "undecided_in",
]
