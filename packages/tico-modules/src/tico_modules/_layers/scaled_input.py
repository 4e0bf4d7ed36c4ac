"""A layer with a multiplication of its input, for scales that no layer in front of it can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_modules._layers.changed_input import ChangedInput
from tico_modules._layers.quantized_conv_transpose import (
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
)
from tico_modules._layers.transposed_linear import TransposedLinear
from tico_modules._storage.exact_module import has_values
from tico_modules._storage.layout import Layout, require_tensor

_INPUTS_FIRST = (
    TransposedLinear,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
    QuantizedConvTranspose1d,
    QuantizedConvTranspose2d,
    QuantizedConvTranspose3d,
)


@final
class ScaledInput(ChangedInput):
    """``layer(x * factor)``, with a factor for each channel of the input.

    `factor` has shape (channels,); `axis` is the axis of the channels, negative: -1 is the last one.

    >>> import torch
    >>> ScaledInput(nn.Identity(), torch.tensor([2.0, 0.5]), axis=-1)(torch.ones(1, 2)).tolist()
    [[2.0, 0.5]]
    """

    kind: ClassVar[str] = "scaled_input"
    factor: Tensor

    def __init__(self, layer: nn.Module, factor: Tensor, *, axis: int) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("factor", factor)
        self._put_before(layer)

    def _read_weight(self) -> Tensor:
        """Return the layer's weight (out, in / groups, …), or (in, out / groups, …), times the factors."""
        weight, factor, layer = getattr(self.layer, "weight"), self.factor, self.layer  # noqa: B009  # torch's type
        wide: Tensor = weight.to(torch.promote_types(weight.dtype, torch.float32))
        if isinstance(layer, _INPUTS_FIRST):
            scaled = wide * factor.to(wide.dtype).view(-1, *(1 for _ in wide.shape[1:]))
        else:
            by_group = factor.to(wide.dtype).view(-1, 1, wide.shape[1], *(1 for _ in wide.shape[2:]))
            scaled = (wide.view(len(by_group), -1, *wide.shape[1:]) * by_group).view(wide.shape)
        return scaled.detach().to(weight.dtype).contiguous()

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output for the multiplied input."""
        along = [-1, *[1] * (-1 - self.axis)]
        output: Tensor = self.layer(input * self.factor.to(input.dtype).view(along))
        return output

    def layout(self) -> Mapping[str, object]:
        """Return the axis, for JSON, as its distance from the end: 1 is the last one."""
        return {"axis": -self.axis}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the multiplication in front of `original`.

        Raises:
            ArtifactError: the factor or the axis is missing, or none that there can be.
        """
        factor, axis = require_tensor(tensors, layout, "factor"), layout.integer("axis")
        if not 1 <= axis <= 4:
            raise layout.make_error("axis", "1 to 4")
        finite = factor.is_floating_point() and has_values(factor) and bool(factor.isfinite().all())
        if factor.ndim != 1 or not finite:
            raise layout.make_error("factor", "a vector of finite floats")
        return cls(original, factor, axis=-axis)

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"axis={self.axis}"
