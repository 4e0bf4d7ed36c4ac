"""Keys and values that a language model keeps, as codes."""

from tico_quantizers.algorithms.kv_cache._module import KVCacheQuantizer

__all__ = ["KVCacheQuantizer"]
