"""The public names of tico_observers."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_observers` promises."""

    package = "tico_observers"
    hidden = ("tico_quantizers", "tico_wrapq", "tico_api", "tico")
    names = (
        "AbsMaxStatistic",
        "AffineParams",
        "AnyObserver",
        "EMAObserver",
        "EMAStatistic",
        "EntropyObserver",
        "ExactGramStatistic",
        "Extremes",
        "GramStatistic",
        "HistogramObserver",
        "HistogramStatistic",
        "IdentityObserver",
        "IdentityStatistic",
        "MSEObserver",
        "MXObserver",
        "MinMaxObserver",
        "Observer",
        "OnNonfinite",
        "PercentileObserver",
        "RangeStatistic",
        "SealedFile",
        "Statistic",
        "broadcast",
        "dequantize",
        "fake_quantize",
        "fake_quantize_mx",
        "least_divergence_range",
        "least_error_range",
        "load_statistics",
        "locked_folder",
        "observer_for",
        "pack",
        "packed_width",
        "params_from_range",
        "params_per_token",
        "percentile_range",
        "quantize",
        "read_sealed",
        "replaced_file",
        "require_finite",
        "require_fit",
        "require_float_tensor",
        "round_to_grid",
        "save_statistics",
        "seal",
        "statistic_shape",
        "tensor_digest",
        "unpack",
        "write_sealed",
    )
