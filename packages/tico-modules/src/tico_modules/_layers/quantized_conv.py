"""Integer convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, TypeAlias, final

import attrs
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import Self

from tico_config import NumberFormat
from tico_modules._layers.convolution import ConvolutionModule, KernelSettings
from tico_modules._layers.quantized_module import Parts, copy_bias
from tico_modules._storage.layout import Layout
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.answers import answer_for
from tico_modules._tree.requirements import float_weight

FloatConv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_FLOATS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
_PAD_MODES = ("constant", "reflect", "replicate", "circular")


@attrs.frozen(kw_only=True)
class ConvSettings(KernelSettings):
    """How a convolution moves over its input.

    `stride` and `dilation` have an integer for each of its 1 to 3 axes. `pads` are the elements added before
    and after each axis, the last axis first, as `torch.nn.functional.pad` takes them; `pad_mode` is its mode.
    """

    pads: tuple[int, ...]
    pad_mode: str

    @classmethod
    def of(cls, conv: FloatConv) -> ConvSettings:
        """Return the settings of a float convolution, its padding spelled out."""
        pads: list[int] = conv._reversed_padding_repeated_twice
        mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
        return cls(
            stride=tuple(conv.stride),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
            pads=tuple(pads),
            pad_mode=mode,
        )

    @classmethod
    def read(cls, settings: Layout) -> ConvSettings:
        """Return the settings that a file holds.

        Raises:
            ArtifactError: a value is missing or wrong.
        """
        conv = cls(
            stride=settings.integers("stride"),
            dilation=settings.integers("dilation"),
            groups=settings.integer("groups"),
            pads=settings.integers("pads"),
            pad_mode=settings.text("pad_mode"),
        )
        conv.require_valid(settings)
        axes = len(conv.stride)
        if len(conv.pads) != 2 * axes:
            raise settings.make_error("pads", f"{2 * axes} integers of at least 0")
        if conv.pad_mode not in _PAD_MODES:
            raise settings.make_error("pad_mode", f"one of {', '.join(_PAD_MODES)}")
        return conv

    def pad(self, x: Tensor) -> Tensor:
        """Return `x`, (batch, channels, *size) or (channels, *size), padded along the axes of `size`."""
        return F.pad(x, self.pads, mode=self.pad_mode) if any(self.pads) else x


class _QuantizedConv(ConvolutionModule[ConvSettings]):
    """A convolution with an integer weight of shape (out_channels, in_channels / groups, *kernel)."""

    @classmethod
    def from_float(
        cls,
        conv: FloatConv,
        dtype: NumberFormat,
        *,
        symmetric: bool = False,
        group_size: int | None = None,
    ) -> Self:
        """Return `conv` with its weight rounded to nearest, a grid for each output channel or group.

        Raises:
            NumericsError: the weight holds NaN or infinity.
            UnsupportedError: it is no such layer, or its weight has no values.
        """
        weight = float_weight(conv, _FLOATS[cls.axes])
        packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=symmetric, group_size=group_size)
        return answer_for(conv, cls(Parts(packed=packed, bias=copy_bias(conv)), ConvSettings.of(conv)))

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the convolution made of `parts` with the given settings.

        Raises:
            ArtifactError: a setting is missing or wrong.
        """
        conv = ConvSettings.read(settings)
        conv.require_fit(parts.packed.shape, cls.axes, settings)
        return cls(parts, conv)

    @classmethod
    def settings_of(cls, original: nn.Module) -> Mapping[str, object]:
        """Return the settings of the kernel of a float convolution."""
        if isinstance(original, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            return ConvSettings.of(original).to_values()
        return {}

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        conv, bias = self.conv, self._cast_bias(x)
        convolve = _CONVOLUTIONS[len(conv.stride)]
        return convolve(conv.pad(x), weight, bias, conv.stride, 0, conv.dilation, conv.groups)


@final
class QuantizedConv1d(_QuantizedConv):
    """A one-dimensional convolution with an integer weight."""

    kind: ClassVar[str] = "conv1d"
    axes: ClassVar[int] = 1


@final
class QuantizedConv2d(_QuantizedConv):
    """A two-dimensional convolution with an integer weight.

    >>> import torch
    >>> from tico_config import DType
    >>> layer = QuantizedConv2d.from_float(nn.Conv2d(3, 4, 3, padding=1), DType.uint(8))
    >>> layer(torch.zeros(1, 3, 5, 5)).shape
    torch.Size([1, 4, 5, 5])
    """

    kind: ClassVar[str] = "conv2d"
    axes: ClassVar[int] = 2


@final
class QuantizedConv3d(_QuantizedConv):
    """A three-dimensional convolution with an integer weight."""

    kind: ClassVar[str] = "conv3d"
    axes: ClassVar[int] = 3
