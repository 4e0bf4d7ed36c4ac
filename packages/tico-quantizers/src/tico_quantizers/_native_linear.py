"""How an integer linear layer finds its kernel, and when it may use it."""

from __future__ import annotations

from typing import Final, Literal, TypeAlias

import attrs
import torch
from torch import Tensor, nn

from tico_config import PerTensor, PerToken
from tico_quantizers import _native_operators as operators
from tico_quantizers._activation_grid import ActivationGrid
from tico_quantizers._native_kernels import (
    MOST_COLUMNS,
    GroupScaledProduct,
    IntegerProduct,
    Kernel,
    RowScaledProduct,
)
from tico_quantizers._packed_weight import PackedWeight
from tico_quantizers._quantized_module import Parts

Backend: TypeAlias = Literal["reference", "native", "auto"]

_INPUTS: Final = (torch.float32, torch.bfloat16)


@attrs.frozen(eq=False)
class NativeLinear:
    """The kernel of one layer, or the reason why it has none, and the tensors it was made of."""

    kernel: Kernel | None
    reason: str
    _sources: tuple[tuple[Tensor, int], ...]

    @classmethod
    def of(cls, parts: Parts) -> NativeLinear:
        """Return the native form of the linear layer made of `parts`."""
        reason = _reason_against(parts.packed)
        kernel = None if reason else _kernel(parts.packed, parts.act_in)
        return cls(kernel, reason, tuple((tensor, _version(tensor)) for tensor in _tensors(parts)))

    def is_of(self, parts: Parts) -> bool:
        """Tell whether the tensors of `parts` are still those it was made of, unchanged."""
        now = _tensors(parts)
        return len(now) == len(self._sources) and all(
            tensor is source and _version(tensor) == version
            for tensor, (source, version) in zip(now, self._sources, strict=True)
        )

    def label(self, backend: Backend) -> str:
        """Return what computes the layer, in a few words."""
        if self.kernel is None:
            return f"reference: {self.reason}"
        where = "" if self.serves(torch.float32, backend) else ", for bfloat16 activations"
        return self.kernel.name + where

    def serves(self, dtype: torch.dtype, backend: Backend) -> bool:
        """Tell whether the kernel is to be used for inputs of `dtype`."""
        exact = isinstance(self.kernel, IntegerProduct)
        return self.kernel is not None and (backend == "native" or exact or dtype == torch.bfloat16)

    def output(self, x: Tensor, parts: Parts, backend: Backend) -> Tensor | None:
        """Return the layer's output for `x` but for `act_out`, or None where the reference has to do it."""
        kernel = self.kernel
        if kernel is None or not self.serves(x.dtype, backend) or not is_plain(x, parts.packed.columns):
            return None
        if parts.act_in is not None and not isinstance(kernel, IntegerProduct):
            x = parts.act_in(x)
        bias = None if parts.bias is None else parts.bias.to(torch.float32)
        product = kernel(x.reshape(-1, x.shape[-1]), bias)
        return None if product is None else product.view(*x.shape[:-1], -1).to(x.dtype)


def is_plain(x: Tensor, columns: int) -> bool:
    """Tell whether `x` holds numbers for a kernel to read, that nobody traces or differentiates."""
    scripted: bool = torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]  # torch's lists
    tracked = (x.requires_grad and torch.is_grad_enabled()) or scripted or torch.is_autocast_enabled("cpu")
    numbers = type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided
    return numbers and not tracked and x.dtype in _INPUTS and x.numel() > 0 and x.shape[-1] == columns


def _reason_against(weight: PackedWeight) -> str:
    """Return why no kernel can multiply by `weight`, or nothing."""
    if not weight.codes.is_cpu:
        return f"its codes are on {weight.codes.device}"
    if weight.bits > 8:
        return f"codes of {weight.bits} bits have no kernel"
    return "" if weight.codes.numel() else "its weight is empty"


def _kernel(weight: PackedWeight, grid: ActivationGrid | None) -> Kernel:
    row_scaled = weight.scale.shape[1] == 1
    if grid is not None and row_scaled and _suits_integers(grid, weight.columns):
        return IntegerProduct.of(weight, grid)
    return RowScaledProduct.of(weight) if row_scaled and weight.bits > 4 else GroupScaledProduct.of(weight)


def _suits_integers(grid: ActivationGrid, columns: int) -> bool:
    unit = isinstance(grid.granularity, PerTensor | PerToken)
    return unit and grid.dtype.bits <= 8 and columns <= MOST_COLUMNS and operators.int8_works()


def _tensors(parts: Parts) -> tuple[Tensor, ...]:
    """Return the tensors that a kernel depends on."""
    weight, grid = parts.packed, parts.act_in
    index = () if weight.group_index is None else (weight.group_index,)
    moved = () if grid is None else (grid.scale, grid.zero_point)
    return (weight.codes, weight.scale, weight.zero_point, *index, *moved)


def _version(tensor: Tensor) -> int:
    """Return how often `tensor` was written to; 0 for an inference tensor, which does not count."""
    return 0 if tensor.is_inference() else tensor._version
