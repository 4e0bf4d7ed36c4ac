"""What every algorithm promises, kept by PTQ."""

from __future__ import annotations

from torch import Tensor, nn

from tico_config import PTQConfig
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.testing import AlgorithmPromises
from tico_wrapq import PTQQuantizer


class TestPTQ(AlgorithmPromises):
    """PTQ keeps the promises of an algorithm."""

    config = PTQConfig()
    registry = Registry([quantizer_entry(PTQConfig, PTQQuantizer)])


class TestPTQOnConvolutions(TestPTQ):
    """PTQ keeps the promises where it folds a batch norm."""

    def model(self) -> nn.Module:
        """Return the model with a convolution."""
        return self.conv_model()

    def batches(self) -> list[Tensor]:
        """Return images."""
        return self.conv_batches()
