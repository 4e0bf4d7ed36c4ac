"""HQQ: weights on the grids that come nearest to them in an Lp norm, found without data."""

from tico_quantizers.algorithms.hqq._module import HQQQuantizer

__all__ = ["HQQQuantizer"]
