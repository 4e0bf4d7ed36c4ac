"""Injected exceptions, from `tico_quantizers.testing`, under their old names."""

from tico_quantizers.testing import TorchCalls, calls_of, sampled

__all__ = ["TorchCalls", "calls_of", "sampled"]
