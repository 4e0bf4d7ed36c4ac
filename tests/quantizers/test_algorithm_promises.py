"""What every algorithm promises, kept by those of tico-quantizers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import attrs
from torch import Tensor, nn

from tico_config import (
    NVFP4,
    AWQConfig,
    BlockTuneConfig,
    CLEConfig,
    DType,
    GPTQConfig,
    HQQConfig,
    ModuleConfig,
    RotationConfig,
    ScaleTuneConfig,
    SmoothQuantConfig,
    register_config,
)
from tico_modules import LayerReport, PackedWeight
from tico_quantizers import Registry, quantizer_entry
from tico_quantizers.conversion import WeightQuantizer
from tico_quantizers.layers import QuantizedWeight, Target, matrix, shape
from tico_quantizers.testing import AlgorithmPromises, Fourfold, ResidualBlock, seeded


class TestGPTQ(AlgorithmPromises):
    """GPTQ keeps the promises of an algorithm."""

    config = GPTQConfig(show_progress=False)


class TestGPTQOfFloats(AlgorithmPromises):
    """GPTQ keeps them with a format of floating-point elements."""

    config = GPTQConfig(dtype=NVFP4(), show_progress=False)


class TestAWQ(AlgorithmPromises):
    """AWQ keeps the promises of an algorithm."""

    config = AWQConfig(group_size=None, show_progress=False)


class TestAWQOfFloats(AlgorithmPromises):
    """AWQ keeps them with a format of floating-point elements."""

    config = AWQConfig(dtype=NVFP4(), show_progress=False)


class TestBlockTune(AlgorithmPromises):
    """Learned rounding keeps the promises of an algorithm."""

    config = BlockTuneConfig(show_progress=False)


class TestCLE(AlgorithmPromises):
    """Equalization keeps the promises of an algorithm; of the data only what reads what decides."""

    config = CLEConfig()
    needs_data = False


class TestHQQ(AlgorithmPromises):
    """HQQ keeps the promises of an algorithm."""

    config = HQQConfig(show_progress=False)
    needs_data = False


class TestScaleTune(AlgorithmPromises):
    """Scales tuned after GPTQ keep the promises of an algorithm."""

    config = ScaleTuneConfig(base=GPTQConfig(show_progress=False), norms=True, steps=2, show_progress=False)


class TestSmoothQuant(AlgorithmPromises):
    """SmoothQuant keeps the promises of an algorithm."""

    config = SmoothQuantConfig()
    unmet: ClassVar[Mapping[str, str]] = {}


class Stream(nn.Module):
    """Blocks between a layer that writes to the residual stream and one that reads it."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__()
        self.first = nn.Linear(8, 8)
        self.blocks = nn.Sequential(*blocks)
        self.last = nn.Linear(8, 8)

    def forward(self, x: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the outputs for `x` (…, 8), which a mask hides."""
        output: Tensor = self.last(self.blocks(self.first(x)))
        return output if attention_mask is None else output * attention_mask[..., None]


class Pooled(nn.Module):
    """A convolution with a batch norm in front of a residual stream."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 8, 4)
        self.norm = nn.BatchNorm2d(8)
        self.stream = Stream(ResidualBlock())

    def forward(self, x: Tensor) -> Tensor:
        """Return 8 values for each image of `x` (images, 2, 4, 4)."""
        output: Tensor = self.stream(self.norm(self.conv(x)).flatten(1))
        return output


class TestRotation(AlgorithmPromises):
    """Rotation keeps the promises of an algorithm, on models whose residual stream it can rotate."""

    config = RotationConfig()

    def model(self) -> nn.Module:
        """Return blocks between two layers."""
        return seeded(lambda: Stream(ResidualBlock(), ResidualBlock()))

    def conv_model(self) -> nn.Module:
        """Return a stream behind a convolution."""
        return seeded(Pooled)

    def masked_model(self) -> nn.Module:
        """Return a model with a mask."""
        return self.model()

    def unlike_model(self) -> nn.Module:
        """Return a stream with a layer in it that computes more than its class."""
        return seeded(lambda: Stream(ResidualBlock(), Fourfold(8, 8)))


class TestOnlineRotation(TestRotation):
    """So does one that puts rotations in front of layers."""

    config = RotationConfig(online_inputs=True)


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
