"""What every algorithm promises, kept by those of tico-quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs

from tico_config import (
    AWQConfig,
    CLEConfig,
    DType,
    GPTQConfig,
    HQQConfig,
    ModuleConfig,
    SmoothQuantConfig,
    register_config,
)
from tico_modules import LayerReport, PackedWeight
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.conversion import WeightQuantizer
from tico_quantizers.layers import QuantizedWeight, Target, matrix, shape
from tico_quantizers.testing import AlgorithmPromises


class TestGPTQ(AlgorithmPromises):
    """GPTQ keeps the promises of an algorithm."""

    config = GPTQConfig(show_progress=False)


class TestAWQ(AlgorithmPromises):
    """AWQ keeps the promises of an algorithm."""

    config = AWQConfig(group_size=None, show_progress=False)


class TestCLE(AlgorithmPromises):
    """Equalization keeps the promises of an algorithm; of the data only what reads what decides."""

    config = CLEConfig()
    needs_data = False


class TestHQQ(AlgorithmPromises):
    """HQQ keeps the promises of an algorithm."""

    config = HQQConfig(show_progress=False)
    needs_data = False


class TestSmoothQuant(AlgorithmPromises):
    """SmoothQuant keeps the promises of an algorithm."""

    config = SmoothQuantConfig()
    unmet: ClassVar[Mapping[str, str]] = {}


@register_config
@attrs.frozen(kw_only=True)
class RoundingConfig(ModuleConfig):
    """Codes of `bits` bits, one grid a row."""

    name: ClassVar[str] = "rounding"

    bits: int = 4


class RoundingQuantizer(WeightQuantizer[RoundingConfig]):
    """Rounds every layer to nearest, without data."""

    def quantize(self, target: Target[RoundingConfig]) -> QuantizedWeight:
        """Return the codes of a layer."""
        weight, dtype = matrix(target.layer).view(shape(target.layer)), DType.uint(target.config.bits)
        packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=False, group_size=None)
        kind = type(target.layer).__name__
        return QuantizedWeight(packed, LayerReport(path=target.path, module=kind, algorithm="rounding"))


class TestWithoutData(AlgorithmPromises):
    """What `WeightQuantizer` is derived for keeps all promises, padding and hooks included."""

    config = RoundingConfig()
    registry = Registry([quantizer_entry(RoundingConfig, RoundingQuantizer)])
    needs_data = False
