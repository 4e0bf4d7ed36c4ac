"""The public names of tico_quantizers and of its rooms."""

from public_api import PublicAPI, PublicNames


class TestPublicAPI(PublicAPI):
    """What `tico_quantizers` promises."""

    package = "tico_quantizers"
    hidden = ("tico_pt2e", "tico_wrapq", "tico_api", "tico")
    names = (
        "KVCacheQuantizer",
        "INTEGER_MODULES",
        "AWQQuantizer",
        "ActivationGrid",
        "AnyPrepared",
        "AnyQuantizer",
        "BaseQuantizer",
        "BlockTuneQuantizer",
        "CLEQuantizer",
        "Calibration",
        "ConvSettings",
        "ConvTransposeSettings",
        "Converted",
        "Edit",
        "ExactModule",
        "Example",
        "GPTQQuantizer",
        "HQQQuantizer",
        "LayerReport",
        "Layout",
        "PackedWeight",
        "Parts",
        "Prepared",
        "QuantizedConv1d",
        "QuantizedConv2d",
        "QuantizedConv3d",
        "QuantizedConvTranspose1d",
        "QuantizedConvTranspose2d",
        "QuantizedConvTranspose3d",
        "QuantizedEmbedding",
        "QuantizedExperts",
        "QuantizedLinear",
        "QuantizedModule",
        "QuantizerEntry",
        "Recorder",
        "Registry",
        "Report",
        "RestorableModule",
        "RotatedInput",
        "RotationQuantizer",
        "ScaleTuneQuantizer",
        "composed_entry",
        "Run",
        "ScaledInput",
        "SmoothQuantQuantizer",
        "select_below",
        "child_path",
        "children",
        "find_blocks",
        "installed_entries",
        "load_quantized",
        "model_fingerprint",
        "named_modules",
        "find_entry_points",
        "parameter",
        "quantize_weight",
        "quantizer_entry",
        "record_outputs",
        "remember",
        "report",
        "require_watched",
        "runs_of",
        "save_quantized",
        "set_backend",
        "smoothing_scale",
        "carry_over",
        "require_tensor",
        "find_tied_paths",
        "Planned",
    )


class TestProtocol(PublicNames):
    """What the room `tico_quantizers.protocol` promises."""

    package = "tico_quantizers.protocol"
    names = (
        "AnyPrepared",
        "AnyQuantizer",
        "BaseQuantizer",
        "Converted",
        "Example",
        "Prepared",
        "Planned",
    )


class TestRegistry(PublicNames):
    """What the room `tico_quantizers.registry` promises."""

    package = "tico_quantizers.registry"
    names = (
        "ENTRY_POINT_GROUP",
        "QuantizerEntry",
        "Registry",
        "installed_entries",
        "composed_entry",
        "quantizer_entry",
    )


class TestLayers(PublicNames):
    """What the room `tico_quantizers.layers` promises."""

    package = "tico_quantizers.layers"
    names = (
        "ExpertLinear",
        "ExpertStack",
        "ExpertWeight",
        "FusedExperts",
        "eager_forward",
        "fused_experts",
        "quiet",
        "FloatLayer",
        "IntegerLayer",
        "Layer",
        "LayerPlan",
        "QuantizedWeight",
        "Target",
        "as_layer",
        "columns",
        "feature_axis",
        "find_blocks",
        "group_size_problem",
        "groups",
        "homes_in",
        "input_rows",
        "input_tensor",
        "layer_kind",
        "layers_in",
        "less_read",
        "matrix",
        "multiplication_problems",
        "output_added",
        "output_embeddings",
        "computes_itself",
        "float_lines",
        "format_of",
        "has_own_forward",
        "require_as_its_class",
        "peers_of",
        "plan_layers",
        "reads_rows",
        "require_in_place",
        "routers_in",
        "reasons_against",
        "shape",
        "tensor_scale_problem",
        "weight_axes",
        "with_weight",
        "numbers_of",
        "outline",
        "outline_line",
        "with_values",
    )


class TestCalibration(PublicNames):
    """What the room `tico_quantizers.calibration` promises."""

    package = "tico_quantizers.calibration"
    names = (
        "Arguments",
        "changed_call",
        "ExpertLayers",
        "Finish",
        "ABSMAX",
        "ALONE",
        "ActivationStore",
        "Batch",
        "BlockCalls",
        "BlockInputs",
        "BlockOptions",
        "BlockRuns",
        "Calibration",
        "Call",
        "Checkpoint",
        "GRAM",
        "GroupedGram",
        "Hook",
        "InputGrams",
        "Origin",
        "ONE_CHANNEL",
        "ReachedLayers",
        "RealTokens",
        "Ranks",
        "Recorder",
        "Replay",
        "SPOILED",
        "SearchCheckpoint",
        "Snapshots",
        "Step",
        "TokenMask",
        "TokenRule",
        "UNREACHED",
        "WatchedModule",
        "after_call",
        "attempted_twice",
        "before_call",
        "checkpoint_folder",
        "float_statistics",
        "gram_bytes",
        "has_foreign_hooks",
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
        "remember_hooks",
        "require_apart",
        "require_evaluation_mode",
        "require_layers",
        "require_same",
        "require_same_result",
        "require_watched",
        "revision",
        "samples_of",
        "run_blocks",
        "spoiled_figures",
        "spoiled_points",
        "tensor_leaves",
        "unchanged_process",
        "warn_of_spoiled",
        "watch_forward",
        "UNCALLED",
        "is_mask_name",
        "real_tokens",
    )


class TestEquivalence(PublicNames):
    """What the room `tico_quantizers.equivalence` promises."""

    package = "tico_quantizers.equivalence"
    names = (
        "Candidates",
        "ChannelScale",
        "FoundPairs",
        "InputMaxima",
        "Pair",
        "PairCalibration",
        "Consumer",
        "alone",
        "as_channel_scale",
        "candidates_of",
        "exact_for",
        "find_pairs",
        "fold",
        "lines_left",
        "put_matrix",
        "reason_against_scaling",
        "scaled_pairs",
        "Folds",
        "FollowedTensors",
        "FoundRotations",
        "Member",
        "NormReaders",
        "OnlineRotation",
        "Rotatable",
        "RotatedNorm",
        "Rotation",
        "RotationCalibration",
        "StreamTrace",
        "StreamWays",
        "Turn",
        "as_rotated_norm",
        "config_of",
        "planned_pairs",
        "rotations_of",
        "scaled_memory",
        "undecided_in",
    )


class TestTuning(PublicNames):
    """What the room `tico_quantizers.tuning` promises."""

    package = "tico_quantizers.tuning"
    names = (
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
    )


class TestSolvers(PublicNames):
    """What the room `tico_quantizers.solvers` promises."""

    package = "tico_quantizers.solvers"
    names = (
        "ChannelMagnitudes",
        "ConsumerWeight",
        "Factor",
        "Grid",
        "LpGrid",
        "Reader",
        "Solution",
        "best_alpha",
        "best_scale",
        "best_shares",
        "equalizing_scales",
        "factored",
        "half_quadratic",
        "loss_of_nearest",
        "magnitudes",
        "nearest",
        "output_error",
        "power",
        "quantize_weight",
        "row_errors",
        "smoothing_scale",
        "solve",
        "solve_by",
        "hadamard_matrix",
        "orthogonal_factors",
        "orthogonal_matrix",
    )


class TestConversion(PublicNames):
    """What the room `tico_quantizers.conversion` promises."""

    package = "tico_quantizers.conversion"
    names = (
        "ClosedExperts",
        "close_experts",
        "open_experts",
        "BlockCalibration",
        "BlockQuantizer",
        "WeightQuantizer",
        "Conversion",
        "SKIPPED",
        "NEVER_CALLED",
        "gram_memory",
        "planned_layers",
        "solved_weight",
    )


class TestLifecycle(PublicNames):
    """What the room `tico_quantizers.lifecycle` promises."""

    package = "tico_quantizers.lifecycle"
    names = (
        "calibrate",
        "calibration_of",
        "convert",
        "convert_together",
        "detached_copy",
        "load_calibration",
        "prepare",
        "save_calibration",
        "plan",
    )


class TestGPTQ(PublicNames):
    """What the room `tico_quantizers.algorithms.gptq` promises."""

    package = "tico_quantizers.algorithms.gptq"
    names = (
        "GPTQQuantizer",
        "Solution",
        "nearest",
        "quantize_weight",
        "solve",
    )


class TestAWQ(PublicNames):
    """What the room `tico_quantizers.algorithms.awq` promises."""

    package = "tico_quantizers.algorithms.awq"
    names = (
        "AWQCalibration",
        "AWQQuantizer",
    )


class TestSmoothQuant(PublicNames):
    """What the room `tico_quantizers.algorithms.smoothquant` promises."""

    package = "tico_quantizers.algorithms.smoothquant"
    names = (
        "SmoothQuantCalibration",
        "SmoothQuantQuantizer",
        "smoothing_scale",
    )


class TestPlanning(PublicNames):
    """What the room `tico_quantizers.planning` promises."""

    package = "tico_quantizers.planning"
    names = ("Plan", "PlanLine", "bytes_by_line", "differences", "total_bytes")


class TestEvaluation(PublicNames):
    """What the room `tico_quantizers.evaluation` promises."""

    package = "tico_quantizers.evaluation"
    names = (
        "Ablation",
        "AblationLine",
        "BlockError",
        "Comparison",
        "Bin",
        "SeenPoint",
        "SeenPoints",
        "watch_points",
        "QuantizedPart",
        "Selection",
        "ablate",
        "ablation",
        "compare",
        "divergence",
        "logits_of",
        "perplexity",
        "rows_of",
    )


class TestAnalysis(PublicNames):
    """What the room `tico_quantizers.analysis` promises."""

    package = "tico_quantizers.analysis"
    names = ("CANDIDATES", "Analysis", "AnalysisLine", "Budget", "CurvePoint", "analyze", "choose")


class TestBlockTune(PublicNames):
    """What the room `tico_quantizers.algorithms.block_tune` promises."""

    package = "tico_quantizers.algorithms.block_tune"
    names = ("BlockTuneQuantizer",)


class TestCLE(PublicNames):
    """What the room `tico_quantizers.algorithms.cle` promises."""

    package = "tico_quantizers.algorithms.cle"
    names = ("CLEQuantizer",)


class TestScaleTune(PublicNames):
    """What the room `tico_quantizers.algorithms.scale_tune` promises."""

    package = "tico_quantizers.algorithms.scale_tune"
    names = ("ScaleTuneQuantizer",)


class TestKVCache(PublicNames):
    """What the room `tico_quantizers.algorithms.kv_cache` promises."""

    package = "tico_quantizers.algorithms.kv_cache"
    names = ("KVCacheQuantizer",)


class TestHQQ(PublicNames):
    """What the room `tico_quantizers.algorithms.hqq` promises."""

    package = "tico_quantizers.algorithms.hqq"
    names = ("HQQQuantizer",)


class TestRotation(PublicNames):
    """What the room `tico_quantizers.algorithms.rotation` promises."""

    package = "tico_quantizers.algorithms.rotation"
    names = ("RotationQuantizer",)
