"""Scales and rotations that cancel: of the channels of one module, undone in the layers that read them."""

from tico_quantizers.equivalence._channel_flow import FollowedTensors
from tico_quantizers.equivalence._channel_scale import ChannelScale, as_channel_scale
from tico_quantizers.equivalence._folding import exact_for, fold, put_matrix
from tico_quantizers.equivalence._input_maxima import InputMaxima
from tico_quantizers.equivalence._online_rotation import OnlineRotation
from tico_quantizers.equivalence._pair_calibration import PairCalibration
from tico_quantizers.equivalence._pair_report import lines_left, planned_pairs, scaled_pairs
from tico_quantizers.equivalence._pair_search import candidates_of, scaled_memory, undecided_in
from tico_quantizers.equivalence._passages import find_pairs
from tico_quantizers.equivalence._rotatable import Rotatable, RotatedNorm, as_rotated_norm
from tico_quantizers.equivalence._rotating import Folds, Turn
from tico_quantizers.equivalence._rotation_calibration import RotationCalibration, config_of
from tico_quantizers.equivalence._rotation_trace import StreamTrace, StreamWays
from tico_quantizers.equivalence._rotations import FoundRotations, Member, NormReaders, Rotation, rotations_of
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
    "Folds",
    "FollowedTensors",
    "FoundPairs",
    "FoundRotations",
    "InputMaxima",
    "Member",
    "NormReaders",
    "OnlineRotation",
    "Pair",
    "PairCalibration",
    "Rotatable",
    "RotatedNorm",
    "Rotation",
    "RotationCalibration",
    "StreamTrace",
    "StreamWays",
    "Turn",
    "alone",
    "as_channel_scale",
    "as_rotated_norm",
    "candidates_of",
    "config_of",
    "exact_for",
    "find_pairs",
    "fold",
    "lines_left",
    "planned_pairs",
    "put_matrix",
    "reason_against_scaling",
    "rotations_of",
    "scaled_memory",
    "scaled_pairs",
    "undecided_in",
]
