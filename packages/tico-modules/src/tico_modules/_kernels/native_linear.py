"""The choice of a kernel for an integer linear layer, and the conditions of its use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Final, Literal, TypeAlias

import attrs
import torch
from torch import Tensor, nn

from tico_config import DType, FloatFormat, PerTensor, PerToken
from tico_modules._kernels import native_operators as operators
from tico_modules._kernels.float_pieces import has_one_scale_a_row
from tico_modules._kernels.native_kernels import (
    MOST_COLUMNS,
    GroupScaledProduct,
    IntegerProduct,
    Kernel,
    RowScaledProduct,
)
from tico_modules._storage.activation_grid import ActivationGrid
from tico_modules._storage.packed_weight import PackedWeight
from tico_observers import is_scripted

Backend: TypeAlias = Literal["reference", "native", "auto"]

_INPUTS: Final = (torch.float32, torch.bfloat16)


@attrs.frozen(kw_only=True, eq=False)
class NativeLinear:
    """The kernel of one layer, or the reason why it has none, and the parts of the layer it was made from."""

    kernel: Kernel | None
    reason: str
    _weight: PackedWeight
    _grid: ActivationGrid | None
    _input_grid: ActivationGrid | None  # the grid that inputs are moved to before the kernel reads them
    _columns: int
    _inputs: Mapping[Backend, tuple[torch.dtype, ...]]
    _sources: tuple[tuple[dict[str, Tensor | None], str, Tensor, int], ...]

    @classmethod
    def of(cls, weight: PackedWeight, grid: ActivationGrid | None) -> NativeLinear:
        """Return the native form of the linear layer with this weight and this grid of its input."""
        reason = _find_obstacle(weight)
        kernel = None if reason else _make_kernel(weight, grid)
        exact = isinstance(kernel, IntegerProduct)
        return cls(
            kernel=kernel,
            reason=reason,
            weight=weight,
            grid=grid,
            input_grid=None if exact else grid,
            columns=weight.columns,
            inputs={"native": _INPUTS, "auto": _INPUTS if exact else (torch.bfloat16,)},
            sources=(*_list_buffers(weight), *(() if grid is None else _list_buffers(grid))),
        )

    def is_made_of(self, modules: Mapping[str, nn.Module | None]) -> bool:
        """Tell whether this was made from `modules`, the children of a layer, and they are unchanged."""
        if modules["packed"] is not self._weight or modules["act_in"] is not self._grid:
            return False
        for buffers, name, tensor, version in self._sources:  # a loop, since this is done at each call
            if buffers[name] is not tensor or _count_writes(tensor) != version:
                return False
        return True

    def label(self, backend: Backend) -> str:
        """Return a short description of the back end that computes the layer."""
        if self.kernel is None:
            return f"reference: {self.reason}"
        where = "" if self.serves(torch.float32, backend) else ", for bfloat16 activations"
        return self.kernel.name + where

    def serves(self, dtype: torch.dtype, backend: Backend) -> bool:
        """Tell whether the kernel is to be used for inputs of `dtype`."""
        return self.kernel is not None and dtype in self._inputs[backend]

    def compute(self, x: Tensor, bias: Tensor | None, backend: Backend) -> Tensor | None:
        """Return the layer's output for `x`, before `act_out`, or None where only the reference can."""
        kernel, dtype = self.kernel, x.dtype
        if kernel is None or dtype not in self._inputs[backend] or not is_plain(x, self._columns):
            return None
        if self._input_grid is not None:
            x = self._input_grid(x)
        wide = None if bias is None else bias.to(torch.float32)
        flat = x if x.ndim == 2 else x.reshape(-1, self._columns)
        product = kernel(flat, wide)
        if product is None:
            return None
        narrow = product.float() if dtype == torch.float32 else product.bfloat16()
        return narrow if x.ndim == 2 else narrow.view(*x.shape[:-1], -1)


def is_plain(x: Tensor, columns: int) -> bool:
    """Tell whether a kernel may read `x`: a dense tensor on the CPU that is not traced or differentiated."""
    tracked = (x.requires_grad and torch.is_grad_enabled()) or is_scripted()
    numbers = type(x) in (Tensor, nn.Parameter) and x.is_cpu and x.layout is torch.strided
    plain = numbers and not tracked and not torch.is_autocast_enabled("cpu")
    return plain and x.numel() > 0 and x.shape[-1] == columns


def _find_obstacle(weight: PackedWeight) -> str:
    """Return the reason why no kernel can multiply by `weight`, or an empty text."""
    if not weight.codes.is_cpu:
        return f"its codes are on {weight.codes.device}"
    if isinstance(weight.dtype, FloatFormat):
        return f"codes of {weight.dtype} have no kernel"
    if weight.bits > 8:
        return f"codes of {weight.bits} bits have no kernel"
    if weight.offset is not None:
        return "weights with offsets have no kernel"
    return "" if weight.codes.numel() else "its weight is empty"


def _make_kernel(weight: PackedWeight, grid: ActivationGrid | None) -> Kernel:
    row_scaled = has_one_scale_a_row(weight)
    if grid is not None and row_scaled and _suits_integers(grid, weight.columns):
        return IntegerProduct.of(weight, grid)
    return RowScaledProduct.of(weight) if row_scaled and weight.bits > 4 else GroupScaledProduct.of(weight)


def _suits_integers(grid: ActivationGrid, columns: int) -> bool:
    unit = isinstance(grid.granularity, PerTensor | PerToken)
    return (
        unit
        and isinstance(grid.dtype, DType)
        and grid.dtype.bits <= 8
        and columns <= MOST_COLUMNS
        and operators.int8_works()
    )


def _list_buffers(module: nn.Module) -> Iterator[tuple[dict[str, Tensor | None], str, Tensor, int]]:
    """Yield each buffer of `module`: the dictionary and the name of it, the tensor, its number of writes."""
    buffers: dict[str, Tensor | None] = module._buffers
    for name, tensor in buffers.items():
        if tensor is not None:
            yield buffers, name, tensor, _count_writes(tensor)


def _count_writes(tensor: Tensor) -> int:
    """Return the number of writes to `tensor`; 0 for an inference tensor, for which torch does not count."""
    return 0 if tensor.is_inference() else tensor._version
