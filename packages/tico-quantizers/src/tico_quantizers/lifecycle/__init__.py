"""The two calls around the user's calibration, each of them all or nothing."""

from tico_quantizers.lifecycle._copies import detached_copy
from tico_quantizers.lifecycle._lifecycle import convert, prepare

__all__ = ["convert", "detached_copy", "prepare"]
