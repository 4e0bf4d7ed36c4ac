"""Layers and configs as the library compressed-tensors has them."""

from tico_export.compressed_tensors._cache import cache_bound, cache_problems, cache_scheme, cache_tensors
from tico_export.compressed_tensors._config import quantization_config
from tico_export.compressed_tensors._consumer import transformers_consumer
from tico_export.compressed_tensors._layer import layer_tensors
from tico_export.compressed_tensors._problems import layer_problems
from tico_export.compressed_tensors._scheme import Codes, Scheme, loads_as_floats, schemes_of
from tico_export.compressed_tensors._targets import targets_of

__all__ = [
    "Codes",
    "Scheme",
    "cache_bound",
    "cache_problems",
    "cache_scheme",
    "cache_tensors",
    "layer_problems",
    "layer_tensors",
    "loads_as_floats",
    "quantization_config",
    "schemes_of",
    "targets_of",
    "transformers_consumer",
]
