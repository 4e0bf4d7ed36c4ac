"""Learned rounding: codes and scales moved block by block until a block gives what the float one does."""

from tico_quantizers.algorithms.block_tune._module import BlockTuneQuantizer

__all__ = ["BlockTuneQuantizer"]
