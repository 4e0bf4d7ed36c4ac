"""A layer with an orthogonal matrix in front of it, whose inverse is in the weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, final

import torch
from torch import Tensor, nn
from typing_extensions import Self

from tico_modules._layers.changed_input import ChangedInput
from tico_modules._layers.transposed_linear import TransposedLinear
from tico_modules._storage.exact_module import ExactModule, has_values
from tico_modules._storage.layout import Layout, require_tensor


def rotate(x: Tensor, outer: Tensor, inner: Tensor) -> Tensor:
    """Return ``x @ kron(outer, inner)`` for rows x (…, channels), without making that matrix.

    `outer` (a, a) and `inner` (b, b) have a * b = channels, so that a row takes a + b products a channel. Two
    small dense matrices are faster on a CPU than the log2(channels) passes of a Walsh-Hadamard transform by
    additions. It is computed in float32 at least, and rounded once to the dtype of `x`.

    >>> eye, swap = torch.eye(2), torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> rotate(torch.arange(4.0), swap, eye).tolist(), rotate(torch.arange(4.0), eye, swap).tolist()
    ([2.0, 3.0, 0.0, 1.0], [1.0, 0.0, 3.0, 2.0])
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = x.to(dtype).reshape(*x.shape[:-1], len(outer), len(inner))
    turned = torch.matmul(outer.T.to(dtype), torch.matmul(parts, inner.to(dtype)))
    return turned.reshape(x.shape).to(x.dtype)


@final
class RotatedInput(ChangedInput, ExactModule):
    """``layer(x @ kron(outer, inner))``: an online rotation of the input, undone in the weight of `layer`.

    `outer` (a, a) and `inner` (b, b) are orthogonal, and keep their dtype when the model is cast. QuaRot,
    Ashkboos et al. 2024, arXiv 2404.00456, section 4; called R4 in SpinQuant.

    >>> swap = torch.tensor([[0.0, 1.0], [1.0, 0.0]])
    >>> RotatedInput(nn.Identity(), torch.eye(1), swap)(torch.tensor([1.0, 2.0])).tolist()
    [2.0, 1.0]
    """

    kind: ClassVar[str] = "rotated_input"
    outer: Tensor
    inner: Tensor

    def __init__(self, layer: nn.Module, outer: Tensor, inner: Tensor) -> None:
        super().__init__()
        self.register_buffer("outer", outer)
        self.register_buffer("inner", inner)
        self._put_before(layer)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # torch's own name, which callers may use
        """Return the layer's output for the rotated input."""
        output: Tensor = self.layer(rotate(input, self.outer, self.inner))
        return output

    def _read_weight(self) -> Tensor:
        """Return the layer's weight W times the inverse: W Rᵀ, or R W where inputs are in front."""
        weight: Tensor = getattr(self.layer, "weight")  # noqa: B009  # torch's type
        rows = weight.detach()
        if isinstance(self.layer, TransposedLinear):
            return rotate(rows.T, self.outer.T, self.inner.T).T.contiguous()
        return rotate(rows, self.outer.T, self.inner.T).contiguous()

    def layout(self) -> Mapping[str, object]:
        """Return nothing: the matrices say all."""
        return {}

    @classmethod
    def restore(cls, original: nn.Module, layout: Layout, tensors: Mapping[str, Tensor]) -> Self:
        """Return the rotation in front of `original`.

        Raises:
            ArtifactError: a matrix is missing, or is not square or not finite.
        """
        matrices = [require_tensor(tensors, layout, name) for name in ("outer", "inner")]
        for name, each in zip(("outer", "inner"), matrices, strict=True):
            finite = each.is_floating_point() and has_values(each) and bool(each.isfinite().all())
            if each.ndim != 2 or each.shape[0] != each.shape[1] or not finite:
                raise layout.make_error(name, "a square matrix of finite floats")
        return cls(original, *matrices)

    def extra_repr(self) -> str:
        """Return the sizes of both matrices."""
        return f"{len(self.outer)} * {len(self.inner)}"
