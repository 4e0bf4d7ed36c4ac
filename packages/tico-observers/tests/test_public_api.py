"""The public names of tico_observers."""

from public_api import PublicAPI


class TestPublicAPI(PublicAPI):
    """What `tico_observers` promises."""

    package = "tico_observers"
    hidden = ("tico_quantizers", "tico_wrapq", "tico_api", "tico")
    names = (
        "AffineParams",
        "AnyObserver",
        "EMAObserver",
        "EMAStatistic",
        "Extremes",
        "GramStatistic",
        "MinMaxObserver",
        "Observer",
        "RangeStatistic",
        "SealedFile",
        "Statistic",
        "broadcast",
        "dequantize",
        "fake_quantize",
        "observer_for",
        "pack",
        "packed_width",
        "params_from_range",
        "params_per_token",
        "quantize",
        "read_sealed",
        "require_finite",
        "require_fit",
        "require_float_tensor",
        "round_to_grid",
        "statistic_shape",
        "unpack",
        "write_sealed",
    )
