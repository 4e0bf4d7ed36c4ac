"""A layer with a multiplication of its input, for scales that no layer in front of it can take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

from torch import Tensor, nn
from typing_extensions import Self

from tico_modules._layers.restorable import RestorableModule
from tico_modules._storage.layout import Layout, require_tensor


@final
class ScaledInput(RestorableModule):
    """``layer(x * factor)``, with a factor for each channel of the input.

    `factor` has shape (channels,); `axis` is the axis of the channels, negative: -1 is the last one.

    >>> import torch
    >>> ScaledInput(nn.Identity(), torch.tensor([2.0, 0.5]), axis=-1)(torch.ones(1, 2)).tolist()
    [[2.0, 0.5]]
    """

    kind: ClassVar[str] = "scaled_input"
    holds_modules: ClassVar[bool] = True
    factor: Tensor

    def __init__(self, layer: nn.Module, factor: Tensor, *, axis: int) -> None:
        super().__init__()
        self.layer = layer
        self.axis = axis
        self.register_buffer("factor", factor)

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
            ArtifactError: the factor or the axis is missing.
        """
        return cls(original, require_tensor(tensors, layout, "factor"), axis=-layout.integer("axis"))

    def extra_repr(self) -> str:
        """Return the axis."""
        return f"axis={self.axis}"
