"""Watching the forward passes of a model, and running its blocks again."""

from tico_quantizers.calibration._activation_store import ActivationStore, StoredTensor
from tico_quantizers.calibration._block_calls import BlockCalls, NothingMore
from tico_quantizers.calibration._block_grams import BlockGrams
from tico_quantizers.calibration._called_once import CalledOnce, LastLayer
from tico_quantizers.calibration._calls import (
    Autocast,
    Call,
    Kept,
    Opaque,
    Replay,
    leaves_of,
    map_leaves,
    tensor_leaves,
)
from tico_quantizers.calibration._early_end import EarlyEnd
from tico_quantizers.calibration._forward_watch import (
    Calibration,
    Recorder,
    require_evaluation_mode,
    require_watched,
    watch_forward,
)
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._input_grams import InputGrams, located
from tico_quantizers.calibration._reached_layers import ReachedLayers
from tico_quantizers.calibration._snapshots import Snapshots, fingerprint, tensors_in
from tico_quantizers.calibration._token_weights import WITH_GRADIENTS, watch_sensitivity

__all__ = [
    "WITH_GRADIENTS",
    "ActivationStore",
    "Autocast",
    "BlockCalls",
    "BlockGrams",
    "Calibration",
    "Call",
    "CalledOnce",
    "EarlyEnd",
    "GroupedGram",
    "InputGrams",
    "Kept",
    "LastLayer",
    "NothingMore",
    "Opaque",
    "ReachedLayers",
    "Recorder",
    "Replay",
    "Snapshots",
    "StoredTensor",
    "fingerprint",
    "leaves_of",
    "located",
    "map_leaves",
    "require_evaluation_mode",
    "require_watched",
    "tensor_leaves",
    "tensors_in",
    "watch_forward",
    "watch_sensitivity",
]
