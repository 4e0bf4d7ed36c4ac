"""Keys and values that a language model keeps, as integers."""

from tico_quantizers.algorithms.kv_cache._module import KVCacheQuantizer

__all__ = ["KVCacheQuantizer"]
