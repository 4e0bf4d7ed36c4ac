"""Watching the forward passes of a model, and running its blocks again."""

from tico_quantizers.calibration._activation_store import ActivationStore
from tico_quantizers.calibration._adopted_grams import run_blocks
from tico_quantizers.calibration._attempts import attempted_twice
from tico_quantizers.calibration._block_calls import BlockCalls
from tico_quantizers.calibration._block_driver import Step
from tico_quantizers.calibration._block_inputs import BlockInputs, BlockOptions, TokenRule
from tico_quantizers.calibration._block_runs import BlockRuns, Finish
from tico_quantizers.calibration._calls import Call, Replay, map_leaves, tensor_leaves
from tico_quantizers.calibration._checkpoint import Checkpoint, SearchCheckpoint, checkpoint_folder
from tico_quantizers.calibration._expert_layers import ExpertLayers
from tico_quantizers.calibration._float_statistics import float_statistics
from tico_quantizers.calibration._forward_watch import (
    Calibration,
    Recorder,
    WatchedModule,
    require_evaluation_mode,
    require_watched,
    watch_forward,
)
from tico_quantizers.calibration._gram_memory import gram_bytes, memory_problem
from tico_quantizers.calibration._grouped_gram import GroupedGram
from tico_quantizers.calibration._hooks import (
    Arguments,
    Hook,
    after_call,
    before_call,
    changed_call,
    is_observing,
    is_watched,
    remember_hooks,
)
from tico_quantizers.calibration._input_grams import InputGrams, located
from tico_quantizers.calibration._joining import (
    Origin,
    join_ranks,
    require_apart,
    require_same,
    require_same_result,
)
from tico_quantizers.calibration._layer_statistics import (
    ABSMAX,
    GRAM,
    moved,
    read_range,
    require_layers,
)
from tico_quantizers.calibration._masks import is_mask_name, real_tokens
from tico_quantizers.calibration._micro_batches import Batch, TokenMask, micro_batches, samples_of
from tico_quantizers.calibration._process import unchanged_process
from tico_quantizers.calibration._quiet_runs import has_foreign_hooks, quiet_runs
from tico_quantizers.calibration._ranks import ALONE, Ranks
from tico_quantizers.calibration._reached_layers import ReachedLayers
from tico_quantizers.calibration._real_tokens import RealTokens
from tico_quantizers.calibration._snapshots import Snapshots, revision
from tico_quantizers.calibration._spoiled_points import (
    ONE_CHANNEL,
    SPOILED,
    spoiled_figures,
    spoiled_points,
    warn_of_spoiled,
)
from tico_quantizers.calibration._unreached import UNCALLED, UNREACHED

__all__ = [
    "ABSMAX",
    "ALONE",
    "GRAM",
    "ONE_CHANNEL",
    "SPOILED",
    "UNCALLED",
    "UNREACHED",
    "ActivationStore",
    "Arguments",
    "Batch",
    "BlockCalls",
    "BlockInputs",
    "BlockOptions",
    "BlockRuns",
    "Calibration",
    "Call",
    "Checkpoint",
    "ExpertLayers",
    "Finish",
    "GroupedGram",
    "Hook",
    "InputGrams",
    "Origin",
    "Ranks",
    "ReachedLayers",
    "RealTokens",
    "Recorder",
    "Replay",
    "SearchCheckpoint",
    "Snapshots",
    "Step",
    "TokenMask",
    "TokenRule",
    "WatchedModule",
    "after_call",
    "attempted_twice",
    "before_call",
    "changed_call",
    "checkpoint_folder",
    "float_statistics",
    "gram_bytes",
    "has_foreign_hooks",
    "is_mask_name",
    "is_observing",
    "is_watched",
    "join_ranks",
    "located",
    "map_leaves",
    "memory_problem",
    "micro_batches",
    "moved",
    "quiet_runs",
    "read_range",
    "real_tokens",
    "remember_hooks",
    "require_apart",
    "require_evaluation_mode",
    "require_layers",
    "require_same",
    "require_same_result",
    "require_watched",
    "revision",
    "run_blocks",
    "samples_of",
    "spoiled_figures",
    "spoiled_points",
    "tensor_leaves",
    "unchanged_process",
    "warn_of_spoiled",
    "watch_forward",
]
