"""Products with an integer weight by operators of torch itself, on the CPU.

Each kernel is made once from a `PackedWeight` and holds a copy of its codes in the layout of its operator.
The bounds on how far it is from the reference are in terms of ``u = 2⁻²⁴`` and ``v = 2⁻⁸``, the relative
errors of rounding to float32 and to bfloat16, and of ``|x| |W|ᵀ + |bias|``, where ``|x|`` and ``|W|`` are
the magnitudes that a kernel adds to make each element: ``(|code - m| + |m - zero_point|) scale`` with ``m``
the middle code; the activations' own where they are on no grid, or on a static one.

- `IntegerProduct`: ``(columns + 16) u``. Its sums are exact, so that this is the reference's own rounding.
- the others: ``4 v + (columns + 16) u``: ``v`` for the activations, ``v`` for the product, and up to ``2 v``
  for scales and weights of groups. Weights of groups that are made by a rowwise operator are
  ``code scale + offset`` with both rounded, to float16 up to 4 bits and else to float32, an error of
  ``v / 8`` or ``u`` of each: to ``|W|`` comes ``2^bits scale`` times that. Where the processor has no
  instructions for bfloat16, many tokens are multiplied in float32, and the ``4 v`` are not used up.

For bfloat16 activations and outputs the reference rounds too, which adds ``4 v``.
"""

from __future__ import annotations

import ctypes
import math
from typing import Final, Protocol

import attrs
import torch
from torch import Tensor

from tico_config import DType, PerToken, integer_format
from tico_modules._kernels import native_operators as operators
from tico_modules._kernels.float_pieces import RowwiseCodes, has_one_scale_a_row, multiply_in_pieces
from tico_modules._storage.activation_grid import ActivationGrid, compute_token_grids
from tico_modules._storage.packed_weight import PackedWeight
from tico_observers import unpack

# Beyond, sums of 8-bit products could leave 32 bits: 255 * 128 * columns < 2**31.
MOST_COLUMNS: Final = 65_536

_SMALLEST: Final = torch.finfo(torch.float32).tiny

# Up to so many tokens the kernel that reads packed codes is faster than a product with the codes turned into
# floats first: where the two cross in ``python benchmarks/inference.py crossover``.
INT4_TOKENS: Final = 40
INT8_TOKENS: Final = 12


class Kernel(Protocol):
    """A product with one weight."""

    @property
    def name(self) -> str:
        """A short name, for people."""

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return ``x Wᵀ + bias`` (tokens, rows) for float `x` (tokens, columns), or None where it cannot."""


def _product_name() -> str:
    return "bfloat16 product" if operators.product_dtype() == torch.bfloat16 else "float32 product"


@attrs.frozen(kw_only=True, eq=False)
class IntegerProduct:
    """Activations on a grid of up to 8 bits times weights with one scale a row, summed in 32-bit integers."""

    grid: ActivationGrid
    packed: operators.PackedInt8
    scale: Tensor
    zero: Tensor | None  # (rows,): the zero of each row among the int8 codes
    total: Tensor  # (rows,): the sum of each row of int8 codes
    one_grid: tuple[float, int] | None  # the scale and the zero point of a static grid

    @property
    def name(self) -> str:
        """A short name, for people."""
        return "8-bit integer product"

    @classmethod
    def of(cls, weight: PackedWeight, grid: ActivationGrid) -> IntegerProduct:
        """Return the kernel of `weight` for activations on `grid`."""
        codes, zero = center_codes(weight)
        scale, one_grid = weight.scale[:, 0].contiguous(), None
        if not isinstance(grid.granularity, PerToken):
            one_grid = float(grid.scale), int(grid.zero_point)
            scale = scale * one_grid[0]
        return cls(
            grid=grid,
            packed=operators.PackedInt8.of(codes),
            scale=scale,
            zero=zero,
            total=codes.sum(1).to(torch.float32),
            one_grid=one_grid,
        )

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return ``x Wᵀ + bias`` with `x` moved to the grid; None where `x` holds NaN, which has no code."""
        x = x.to(torch.float32)
        if self.one_grid is not None:
            return self._multiply_static(x, *self.one_grid, bias)
        signed = self.grid.symmetric and self.grid.dtype.signed
        return self._multiply_symmetric(x, bias) if signed else self._multiply_per_token(x, bias)

    def _multiply_static(
        self, x: Tensor, scale: float, zero_point: int, bias: Tensor | None
    ) -> Tensor | None:
        offset = zero_point - self.grid.dtype.qmin
        steps = (x * (1.0 / scale)).round_().clamp_(-offset, self._last - offset)
        if math.isnan(float(steps.sum())):
            return None
        product = self._sum_products(steps, offset)
        return product.mul_(self.scale) if bias is None else torch.addcmul(bias, product, self.scale)

    def _multiply_symmetric(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return the product for a grid around zero for each token, whose scale is finite if the token is."""
        scale: Tensor | float
        if len(x) == 1:  # outside of tensors, which takes less time
            total = scale = _find_symmetric_scale(*x.aminmax(), self._dtype)
        else:
            scale = compute_token_grids(x, self._dtype, symmetric=True)[0].unsqueeze(-1)
            total = float(scale.sum())
        if not math.isfinite(total):
            return None
        return _add_bias(self._sum_symmetric(x * (1.0 / scale)).mul_(self.scale).mul_(scale), bias)

    def _sum_symmetric(self, steps: Tensor) -> Tensor:
        dtype = self.grid.dtype
        return self._sum_products(steps.round_().clamp_(dtype.qmin, dtype.qmax), -dtype.qmin)

    def _sum_products(self, steps: Tensor, offset: int) -> Tensor:
        """Return the exact sums for activations of so many `steps` from zero, which is the code `offset`."""
        sums = None if self.zero is None else steps.sum(-1)
        if offset != 128:
            steps.add_(offset - 128)
        product = operators.sum_int8_products(_to_bytes(steps), offset, self.packed)
        return product if sums is None or self.zero is None else product.addr_(sums, self.zero, alpha=-1)

    @property
    def _dtype(self) -> DType:
        return integer_format(self.grid.dtype)

    def _multiply_per_token(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        scale, zero_point = compute_token_grids(
            x, integer_format(self.grid.dtype), symmetric=self.grid.symmetric
        )
        offsets = (zero_point - self.grid.dtype.qmin).to(torch.float32)
        if math.isnan(float(scale.sum())):
            return None
        codes = (
            (x * scale.reciprocal().unsqueeze(-1)).round_().add_(offsets.unsqueeze(-1)).clamp_(0, self._last)
        )
        sums = None if self.zero is None else codes.sum(-1) - offsets * x.shape[1]
        middle = self._last // 2 + 1
        product = operators.sum_int8_products(_to_bytes(codes.sub_(128)), middle, self.packed)
        product.addr_(middle - offsets, self.total)
        if sums is not None and self.zero is not None:
            product.addr_(sums, self.zero, alpha=-1)
        return _add_bias(product.mul_(self.scale).mul_(scale.unsqueeze(-1)), bias)

    @property
    def _last(self) -> int:
        """The largest code, counted from the smallest."""
        return self.grid.dtype.qmax - self.grid.dtype.qmin


def _add_bias(product: Tensor, bias: Tensor | None) -> Tensor:
    return product if bias is None else product.add_(bias)


def _find_symmetric_scale(smallest: Tensor, largest: Tensor, dtype: DType) -> float:
    """Return the scale that `compute_token_grids` gives a token with these extremes; NaN for NaN."""
    low, high = float(smallest), float(largest)
    width = max(high / dtype.qmax, low / dtype.qmin) if low <= high else math.nan
    return ctypes.c_float(max(width or 1.0, _SMALLEST)).value


def _to_bytes(codes: Tensor) -> Tensor:
    """Return float codes from -128 to 127 as uint8 from 0 to 255; the direct cast takes twice as long."""
    return codes.to(torch.int8).view(torch.uint8).bitwise_xor_(128)


def center_codes(weight: PackedWeight) -> tuple[Tensor, Tensor | None]:
    """Return codes of up to 8 bits as int8, and the zero of each row among them, None where it is 0.

    Codes of up to 7 bits are counted from the zero of their row, those of 8 bits from the middle code. Codes
    of int8 are the buffer itself.
    """
    codes, zero = weight.format.unpack(weight.codes), weight.zero_point - weight.format.origin
    if weight.bits < 8:
        return codes.view(torch.int8) - zero.to(torch.int8), None
    if codes.dtype == torch.uint8:
        codes, zero = (codes ^ 128).view(torch.int8), zero - 128
    rest = zero[:, 0].to(torch.float32)
    return codes, rest if bool(rest.any()) else None


@attrs.frozen(kw_only=True, eq=False)
class FewTokensInt4:
    """Codes of up to four bits, read packed; each group of columns has a scale and a zero in bfloat16."""

    packed: Tensor
    scale_and_zero: Tensor
    group_size: int

    @classmethod
    def of(cls, weight: PackedWeight) -> FewTokensInt4 | None:
        """Return the kernel of `weight`, or None where the operator does not take its shape."""
        rows, columns = weight.shape[0], weight.columns
        run = columns if has_one_scale_a_row(weight) else weight.group_size or columns
        sizes = [size for size in (256, 128, 64, 32) if run % size == 0 and columns % size == 0]
        wide = weight.bits > 4 or weight.group_index is not None
        if wide or rows % 16 or not sizes or not operators.by_int4_works():
            return None
        middle = 2 ** (weight.bits - 1)
        codes = unpack(weight.codes, weight.bits, (rows, columns)).to(torch.int32) + (8 - middle)
        zero = (middle - (weight.zero_point - weight.dtype.qmin)) * weight.scale
        grid = torch.stack([weight.scale, zero], -1).to(torch.bfloat16)
        grid = grid.repeat_interleave(run // sizes[0], 1)[:, : columns // sizes[0]]
        return cls(
            packed=operators.pack_int4(codes),
            scale_and_zero=grid.transpose(0, 1).contiguous(),
            group_size=sizes[0],
        )

    def __call__(self, x: Tensor) -> Tensor:
        """Return ``x Wᵀ`` for bfloat16 `x`."""
        return operators.multiply_by_int4(x, self.packed, self.group_size, self.scale_and_zero)


@attrs.frozen(kw_only=True, eq=False)
class RowScaledProduct:
    """Float activations times codes of 5 to 8 bits with one scale a row, which are exact in bfloat16.

    Few tokens are multiplied by the int8 codes in bfloat16; for many the codes become floats, a piece at a
    time.
    """

    codes: Tensor
    scale: Tensor
    zero: Tensor | None  # (rows,): the zero of each row among the int8 codes, times its scale
    few: bool

    @property
    def name(self) -> str:
        """A short name, for people."""
        product = _product_name()
        return f"int8 codes up to {INT8_TOKENS} tokens, {product}" if self.few else product

    @classmethod
    def of(cls, weight: PackedWeight) -> RowScaledProduct:
        """Return the kernel of `weight`."""
        codes, zero = center_codes(weight)
        scale = weight.scale[:, 0].contiguous()
        # With columns that are no multiple of 16 the operator of torch 2.13 may end the process.
        few = weight.columns % 16 == 0 and operators.by_int8_works()
        return cls(codes=codes, scale=scale, zero=None if zero is None else zero * scale, few=few)

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return ``x Wᵀ + bias``."""
        if self.few and len(x) <= INT8_TOKENS:
            x = x.bfloat16()  # `to` with a format takes a microsecond longer
            product = self.multiply_codes(x)
        else:
            x = x.to(operators.product_dtype())
            product = self.multiply_pieces(x)
        product.mul_(self.scale)
        if self.zero is not None:
            product.addr_(x.sum(-1, dtype=torch.float32), self.zero, alpha=-1)
        return _add_bias(product, bias)

    def multiply_codes(self, x: Tensor) -> Tensor:
        """Return the product of bfloat16 `x` with the codes, which are read as they are."""
        return operators.multiply_by_int8(x, self.codes).to(torch.float32)

    def multiply_pieces(self, x: Tensor) -> Tensor:
        """Return the product of `x` with the codes, which first become what `x` is: bfloat16 or float32."""
        return multiply_in_pieces(x, self.codes.shape, self._fill).to(torch.float32)

    def _fill(self, piece: Tensor, start: int) -> None:
        piece.copy_(self.codes[start : start + len(piece)])


@attrs.frozen(kw_only=True, eq=False)
class GroupScaledProduct:
    """Float activations times codes of up to 8 bits on any grid, summed in float32.

    Few tokens are multiplied by packed four-bit codes in bfloat16 where the shape allows it; for many the
    codes become floats, a piece at a time, from the reference's own.
    """

    weight: PackedWeight
    rowwise: RowwiseCodes | None
    few: FewTokensInt4 | None

    @property
    def name(self) -> str:
        """A short name, for people."""
        product = _product_name()
        return f"int4 codes up to {INT4_TOKENS} tokens, {product}" if self.few else product

    @classmethod
    def of(cls, weight: PackedWeight) -> GroupScaledProduct:
        """Return the kernel of `weight`."""
        return cls(weight=weight, rowwise=RowwiseCodes.of(weight), few=FewTokensInt4.of(weight))

    def __call__(self, x: Tensor, bias: Tensor | None) -> Tensor | None:
        """Return ``x Wᵀ + bias``."""
        if self.few is not None and len(x) <= INT4_TOKENS:
            product = self.few(x.bfloat16())  # `to` with a format takes a microsecond longer
        else:
            product = self.multiply_pieces(x.to(operators.product_dtype()))
        return product if bias is None else product + bias

    def multiply_pieces(self, x: Tensor) -> Tensor:
        """Return the product of `x` with the weight, which first becomes what `x` is: bfloat16 or float32."""
        weight = self.weight
        fill = self._fill if self.rowwise is None else self.rowwise.fill
        product = multiply_in_pieces(x, (weight.shape[0], weight.columns), fill)
        return product.to(torch.float32).mul_(weight.scale[:, 0]) if has_one_scale_a_row(weight) else product

    def _fill(self, piece: Tensor, start: int) -> None:
        weight, here = self.weight, slice(start, start + len(piece))
        codes = weight.format.unpack(weight.codes[here]).to(torch.int16)
        zero = (weight.zero_point[here] - weight.format.origin).to(torch.int16)
        piece.copy_(codes.sub_(weight.spread_groups(zero)))
        if not has_one_scale_a_row(weight):
            piece.mul_(weight.spread_groups(weight.scale[here]).to(piece.dtype))
