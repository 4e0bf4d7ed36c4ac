"""Linear layers as derivatives see them here: one element, as large as its column, for each of the weight.

A derivative g by the output of a layer is Wᵀ g by its input. If g has no preferred direction, the expected
square of that in column c is |w_c|² |g|² / rows. It is the same for a matrix S that has one element in each
column, ±|w_c|, at a place drawn for the layer; and Sᵀ g needs no product. So the mean squares of
derivatives go through a stack of layers as through the layers themselves, but for what correlations
of columns add or take away, while all that stands between the layers has its own derivative.
"""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor
from torch.autograd.function import Function, FunctionCtx

from tico_quantizers.calibration._signs import number_of, signs_of
from tico_quantizers.layers import Layer, matrix


@attrs.define(eq=False)
class StandIn:
    """S of one `layer` that multiplies rows; layers with different numbers have different ones.

    >>> layer = torch.nn.Linear(2, 2, bias=False)
    >>> _ = layer.weight.data.copy_(torch.tensor([[3.0, 0.0], [4.0, 2.0]]))
    >>> StandIn(layer, 0).pulled(torch.ones(1, 2)).abs().tolist()
    [[5.0, 2.0]]
    """

    layer: Layer
    number: int
    _sizes: Tensor | None = None

    @property
    def sizes(self) -> Tensor:
        """The elements of S, float32 (columns,)."""
        if self._sizes is None:
            weight = matrix(self.layer)
            norms: Tensor = torch.linalg.vector_norm(weight, dim=0)
            self._sizes = norms * signs_of(norms.shape, norms.device, seed=self.number)
        return self._sizes

    def pulled(self, slope: Tensor) -> Tensor:
        """Return the rows of `slope` (…, rows) times S, (…, columns)."""
        first = number_of(self.number) % slope.shape[-1]
        return _around(slope, first, len(self.sizes)) * self.sizes.to(slope.dtype)

    def given(self, x: Tensor, rows: int) -> Tensor:
        """Return the rows of `x` (…, columns) times Sᵀ, (…, rows)."""
        terms = x * self.sizes.to(x.dtype)
        whole = torch.nn.functional.pad(terms, (0, -terms.shape[-1] % rows))
        sums: Tensor = whole.view(*whole.shape[:-1], -1, rows).sum(-2)
        return sums.roll(number_of(self.number) % rows, -1)


def _around(x: Tensor, start: int, count: int) -> Tensor:
    """Return `count` elements of the last axis from `start` on, from its beginning again after its end."""
    parts, left = [], count
    while left:
        parts.append(x[..., start : start + left])
        left, start = left - parts[-1].shape[-1], 0
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


@attrs.frozen(eq=False)
class Cut:
    """Where the derivative of a call leaves a layer: `note` is told of that by the output."""

    stand_in: StandIn
    note: Callable[[Tensor], None] | None

    def of(self, anchor: Tensor, x: Tensor, output: Tensor) -> Tensor:
        """Return the `output` for the input `x`, its derivative as `stand_in` says; all lead to `anchor`."""
        found: Tensor = _CutFunction.apply(anchor, x, output, self)  # type: ignore[no-untyped-call]
        return found


class _Context(FunctionCtx):
    cut: Cut
    x_dtype: torch.dtype
    needs_input_grad: tuple[bool, ...]


class _CutFunction(Function):
    @staticmethod
    def forward(ctx: _Context, anchor: Tensor, x: Tensor, output: Tensor, cut: Cut) -> Tensor:
        ctx.cut, ctx.x_dtype = cut, x.dtype
        return output.detach()

    @staticmethod
    def backward(ctx: _Context, slope: Tensor) -> tuple[None, Tensor | None, None, None]:
        if ctx.cut.note is not None:
            ctx.cut.note(slope)
        if not ctx.needs_input_grad[1]:
            return None, None, None, None
        return None, ctx.cut.stand_in.pulled(slope).to(ctx.x_dtype), None, None
