"""Integer transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

FloatConvTranspose: TypeAlias = nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d

_FLOATS = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


@attrs.frozen(kw_only=True)
class ConvTransposeSettings(KernelSettings):
    """How a transposed convolution spreads its input.

    All but `groups` have an integer for each of its 1 to 3 axes. `padding` is cut from both ends of the
    output, `output_padding` is added to its far end.
    """

    padding: tuple[int, ...]
    output_padding: tuple[int, ...]

    @classmethod
    def of(cls, conv: FloatConvTranspose) -> ConvTransposeSettings:
        """Return the settings of a float layer."""
        padding = conv.padding
        return cls(
            stride=tuple(conv.stride),
            padding=(0,) * len(conv.stride) if isinstance(padding, str) else tuple(padding),
            output_padding=tuple(conv.output_padding),
            dilation=tuple(conv.dilation),
            groups=conv.groups,
        )

    @classmethod
    def read(cls, settings: Layout) -> ConvTransposeSettings:
        """Return the settings that a file holds.

        Raises:
            ArtifactError: a value is missing or wrong.
        """
        conv = cls(
            stride=settings.integers("stride"),
            padding=settings.integers("padding"),
            output_padding=settings.integers("output_padding"),
            dilation=settings.integers("dilation"),
            groups=settings.integer("groups"),
        )
        conv.require_valid(settings)
        axes = len(conv.stride)
        for name, values in (("padding", conv.padding), ("output_padding", conv.output_padding)):
            if len(values) != axes:
                raise settings.make_error(name, f"{axes} integers of at least 0")
        return conv

    def swap_channels(self, weight: Tensor) -> Tensor:
        """Return a weight with its first two axes swapped within each group of channels.

        Of torch's shape (in, out / groups, *kernel) it makes (out, in / groups, *kernel), in which each row
        gives one output channel, as in a convolution; and the other way round: it is its own inverse.
        """
        first, second, *kernel = weight.shape
        grouped = weight.reshape(self.groups, first // self.groups, second, *kernel)
        return grouped.transpose(1, 2).reshape(self.groups * second, first // self.groups, *kernel)

    def find_output_padding(
        self, size: Sequence[int], kernel: Sequence[int], wanted: Sequence[int]
    ) -> tuple[int, ...]:
        """Return the output padding with which an input of `size` gives an output of the `wanted` size.

        `kernel` is the size of the kernel; each argument has an integer for each axis.
        """
        steps = zip(size, kernel, wanted, self.stride, self.padding, self.dilation, strict=True)
        return tuple(
            out - ((length - 1) * stride - 2 * cut + spread * (taps - 1) + 1)
            for length, taps, out, stride, cut, spread in steps
        )


class _QuantizedConvTranspose(ConvolutionModule[ConvTransposeSettings]):
    """A transposed convolution whose packed weight has shape (out_channels, in_channels / groups, *kernel).

    So a row of codes makes one output channel, as in a convolution. `dequantize` gives torch's own shape,
    (in_channels, out_channels / groups, *kernel).
    """

    @classmethod
    def from_float(
        cls,
        conv: FloatConvTranspose,
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
        settings = ConvTransposeSettings.of(conv)
        weight = settings.swap_channels(weight)
        packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=symmetric, group_size=group_size)
        return answer_for(conv, cls(Parts(packed=packed, bias=copy_bias(conv)), settings))

    @classmethod
    def from_settings(cls, parts: Parts, settings: Layout) -> Self:
        """Return the layer made of `parts` with the given settings.

        Raises:
            ArtifactError: a setting is missing or wrong.
        """
        conv = ConvTransposeSettings.read(settings)
        conv.require_fit(parts.packed.shape, cls.axes, settings)
        return cls(parts, conv)

    @classmethod
    def settings_of(cls, original: nn.Module) -> Mapping[str, object]:
        """Return the settings of the kernel of a float convolution."""
        if isinstance(original, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            return ConvTransposeSettings.of(original).to_values()
        return {}

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the float weight, (in_channels, out_channels / groups, *kernel)."""
        out, per_group, *kernel = self.packed.shape
        return (per_group * self.conv.groups, out // self.conv.groups, *kernel)

    def _as_rows(self, weight: Tensor) -> Tensor:
        return self.conv.swap_channels(weight)

    def dequantize(self) -> Tensor:
        """Return the weight as float32, of the shape (in_channels, out_channels / groups, *kernel)."""
        return self.conv.swap_channels(self.packed.dequantize())

    def forward(self, input: Tensor, output_size: Sequence[int] | None = None) -> Tensor:  # noqa: A002  # as torch
        """Return the layer's output for `input`, of `output_size` where several sizes are possible."""
        x = self._round_to_grid(self.act_in, input)
        output = self._spread(x, self._weight_for(x).to(x.dtype), output_size)
        return self._round_to_grid(self.act_out, output)

    def _spread(self, x: Tensor, weight: Tensor, output_size: Sequence[int] | None) -> Tensor:
        conv, axes = self.conv, len(self.conv.stride)
        added = conv.output_padding
        if output_size is not None:
            added = conv.find_output_padding(x.shape[-axes:], weight.shape[2:], output_size[-axes:])
        spread, bias = _TRANSPOSED[axes], self._cast_bias(x)
        return spread(x, weight, bias, conv.stride, conv.padding, added, conv.groups, conv.dilation)

    def _compute(self, x: Tensor, weight: Tensor) -> Tensor:
        return self._spread(x, weight, None)


@final
class QuantizedConvTranspose1d(_QuantizedConvTranspose):
    """A one-dimensional transposed convolution with an integer weight."""

    kind: ClassVar[str] = "conv_transpose1d"
    axes: ClassVar[int] = 1


@final
class QuantizedConvTranspose2d(_QuantizedConvTranspose):
    """A two-dimensional transposed convolution with an integer weight.

    >>> import torch
    >>> from tico_config import DType
    >>> layer = QuantizedConvTranspose2d.from_float(nn.ConvTranspose2d(3, 4, 2, stride=2), DType.uint(8))
    >>> layer(torch.zeros(1, 3, 5, 5)).shape, layer.packed.shape, layer.dequantize().shape
    (torch.Size([1, 4, 10, 10]), (4, 3, 2, 2), torch.Size([3, 4, 2, 2]))
    """

    kind: ClassVar[str] = "conv_transpose2d"
    axes: ClassVar[int] = 2


@final
class QuantizedConvTranspose3d(_QuantizedConvTranspose):
    """A three-dimensional transposed convolution with an integer weight."""

    kind: ClassVar[str] = "conv_transpose3d"
    axes: ClassVar[int] = 3
