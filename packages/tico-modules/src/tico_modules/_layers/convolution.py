"""The common part of integer convolutions and transposed convolutions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Generic, TypeVar

import attrs
from typing_extensions import Self

from tico_modules._layers.quantized_module import Parts, QuantizedModule
from tico_modules._storage.layout import Layout


@attrs.frozen(kw_only=True)
class KernelSettings:
    """How a kernel moves over 1 to 3 axes; each tuple has an integer for each of these axes."""

    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int

    def to_values(self) -> dict[str, object]:
        """Return the settings as JSON values."""
        values = attrs.asdict(self)
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def require_fit(self, shape: tuple[int, ...], axes: int, settings: Layout) -> None:
        """Refuse settings that a packed weight of this `shape` cannot have in a convolution over `axes` axes.

        Raises:
            ArtifactError: naming the setting.
        """
        if not len(self.stride) == len(shape) - 2 == axes:
            raise settings.make_error("stride", f"{axes} integers, and the weight of {axes + 2} axes")
        if shape[0] % self.groups:
            raise settings.make_error("groups", f"a divisor of the {shape[0]} output channels")

    def require_valid(self, settings: Layout) -> None:
        """Refuse values that no kernel can have; `settings` is the place in the file that they come from.

        Raises:
            ArtifactError: naming the first wrong value.
        """
        axes = len(self.stride)
        if not 1 <= axes <= 3 or 0 in self.stride:
            raise settings.make_error("stride", "1 to 3 integers of at least 1")
        if len(self.dilation) != axes or 0 in self.dilation:
            raise settings.make_error("dilation", f"{axes} integers of at least 1")
        if self.groups < 1:
            raise settings.make_error("groups", "an integer of at least 1")


S = TypeVar("S", bound=KernelSettings)


class ConvolutionModule(QuantizedModule, Generic[S]):
    """A layer whose integer weight is a kernel of shape (out_channels, in_channels / groups, *kernel)."""

    axes: ClassVar[int]

    def __init__(self, parts: Parts, conv: S) -> None:
        super().__init__(parts)
        self.conv = conv

    def with_parts(self, parts: Parts) -> Self:
        """Return a layer of the same settings made of other parts."""
        return type(self)(parts, self.conv)

    def settings(self) -> Mapping[str, object]:
        """Return the settings of the kernel, for JSON."""
        return self.conv.to_values()
