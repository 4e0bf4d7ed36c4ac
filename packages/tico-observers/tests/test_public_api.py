"""The public names of tico_observers."""

from public_api import PublicAPI, PublicNames


class TestPublicAPI(PublicAPI):
    """What `tico_observers` promises."""

    package = "tico_observers"
    hidden = ("tico_quantizers", "tico_wrapq", "tico_api", "tico")
    names = (
        "AbsMaxStatistic",
        "AffineParams",
        "AnyObserver",
        "ChannelRangeReader",
        "ChannelRangeStatistic",
        "EMAObserver",
        "EMAStatistic",
        "EntropyObserver",
        "ExactGramStatistic",
        "Extremes",
        "GramShare",
        "GramStatistic",
        "HistogramObserver",
        "HistogramStatistic",
        "IdentityObserver",
        "IdentityStatistic",
        "JoinedRanges",
        "LARGEST_PLAUSIBLE",
        "MSEObserver",
        "MXObserver",
        "MinMaxObserver",
        "Observer",
        "OnNonfinite",
        "PercentileObserver",
        "RangeStatistic",
        "Record",
        "SealedFile",
        "Statistic",
        "StatisticsFile",
        "broadcast",
        "can_round_tokens",
        "channel_extremes",
        "dequantize",
        "fake_quantize",
        "fake_quantize_blocks",
        "have_numbers",
        "is_scripted",
        "least_divergence_range",
        "least_error_params",
        "least_error_range",
        "load_statistics",
        "locked_folder",
        "mapped_bytes",
        "merge_channels",
        "observer_for",
        "pack",
        "packed_width",
        "params_from_range",
        "params_per_token",
        "percentile_range",
        "quantize",
        "read_sealed",
        "read_statistics",
        "register_observer",
        "register_statistic",
        "replaced_file",
        "require_finite",
        "require_fit",
        "require_float_tensor",
        "require_plausible",
        "round_to_grid",
        "round_tokens",
        "save_statistics",
        "seal",
        "statistic_shape",
        "tensor_digest",
        "unpack",
        "write_sealed",
    )


class TestPublicFloatFormats(PublicNames):
    """What `tico_observers.float_formats` promises."""

    package = "tico_observers.float_formats"
    names = (
        "decode_elements",
        "decode_scales",
        "element_gaps",
        "element_values",
        "encode_elements",
        "encode_scales",
        "nearby_scales",
        "params_from_largest",
        "require_numbers",
        "round_elements",
        "round_elements_",
        "scales_of",
        "tensor_scale_of",
    )
