"""What was seen of a tensor, and the grid it determines."""

from tico_observers._absmax import AbsMaxStatistic
from tico_observers._affine_params import (
    AffineParams,
    broadcast,
    params_from_range,
    params_per_token,
    require_fit,
    statistic_shape,
)
from tico_observers._block_rounding import fake_quantize_blocks
from tico_observers._channel_range import (
    ChannelRangeReader,
    ChannelRangeStatistic,
    JoinedRanges,
    channel_extremes,
    merge_channels,
)
from tico_observers._custom_observers import AnyObserver, register_observer
from tico_observers._ema import EMAStatistic
from tico_observers._exact_gram import ExactGramStatistic
from tico_observers._fake_quant import dequantize, fake_quantize, quantize
from tico_observers._gram import GramStatistic
from tico_observers._gram_share import GramShare
from tico_observers._gridless_observers import IdentityObserver, MXObserver
from tico_observers._histogram import HistogramStatistic
from tico_observers._histogram_observers import (
    EntropyObserver,
    HistogramObserver,
    MSEObserver,
    PercentileObserver,
)
from tico_observers._identity import IdentityStatistic
from tico_observers._mapped_bytes import mapped_bytes
from tico_observers._observer import Observer
from tico_observers._observer_factory import observer_for
from tico_observers._packing import pack, packed_width, unpack
from tico_observers._range import LARGEST_PLAUSIBLE, Extremes, RangeStatistic, require_plausible
from tico_observers._range_observers import EMAObserver, MinMaxObserver
from tico_observers._range_search import least_divergence_range, least_error_range, percentile_range
from tico_observers._replaced_file import locked_folder, replaced_file
from tico_observers._round_to_grid import round_to_grid
from tico_observers._scale_search import least_error_params
from tico_observers._sealed_file import SealedFile, read_sealed, seal, tensor_digest, write_sealed
from tico_observers._statistic import Statistic
from tico_observers._statistic_records import Record, register_statistic
from tico_observers._statistics_file import (
    StatisticsFile,
    load_statistics,
    read_statistics,
    save_statistics,
)
from tico_observers._tensor_checks import (
    OnNonfinite,
    have_numbers,
    is_scripted,
    require_finite,
    require_float_tensor,
)
from tico_observers._token_rounding import can_round_tokens, round_tokens

__all__ = [
    "LARGEST_PLAUSIBLE",
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
]
