"""Typed views of the operators that native kernels are made of, and a test of each before its first use.

An operator that this build of torch lacks, that raises, or that gives wrong sums on this processor (without
VNNI, products of 8-bit integers may saturate) is not used; one warning says so. What can't be tested because
it would end the process is decided by the shape rules in `tico_modules._kernels.native_kernels`.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Final

import attrs
import torch
from torch import Tensor

from tico_observers import pack


@attrs.frozen(eq=False)
class PackedInt8:
    """An int8 weight in the layout that oneDNN multiplies by."""

    weight: Tensor
    _ones: Tensor
    _zeros: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> PackedInt8:
        """Pack `weight` (rows, columns)."""
        packed: Tensor = torch.ops.onednn.qlinear_prepack(weight, None)
        rows = len(weight)
        return cls(packed, torch.ones(rows), torch.zeros(rows, dtype=torch.int32))


def sum_int8_products(codes: Tensor, zero_point: int, packed: PackedInt8) -> Tensor:
    """Return ``(codes - zero_point) Wᵀ``, summed in 32-bit integers and rounded to float32 once.

    `codes` is uint8 (tokens, columns). Scales are left to the caller: the operator would apply them in an
    order that depends on the number of tokens.
    """
    weight, ones, zeros = packed.weight, packed._ones, packed._zeros
    sums: Tensor = torch.ops.onednn.qlinear_pointwise(
        codes, 1.0, zero_point, weight, ones, zeros, None, 1.0, 0, torch.float32, "none", [], ""
    )
    return sums


def multiply_by_int8(x: Tensor, weight: Tensor) -> Tensor:
    """Return ``x Wᵀ`` for bfloat16 `x` and int8 W, summed in float32 and rounded to bfloat16."""
    ones = torch.ones(weight.shape[0], dtype=torch.bfloat16)
    product: Tensor = torch.ops.aten._weight_int8pack_mm(x, weight, ones)
    return product


def pack_int4(codes: Tensor) -> Tensor:
    """Return int32 codes from 0 to 15 (rows, columns) in the layout that `multiply_by_int4` reads."""
    packed: Tensor = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
    return packed


def multiply_by_int4(x: Tensor, weight: Tensor, group_size: int, scale_and_zero: Tensor) -> Tensor:
    """Return ``x Wᵀ`` for bfloat16 `x` and ``W = (code - 8) * scale + zero``, rounded to bfloat16.

    `scale_and_zero` is bfloat16 (groups, rows, 2).
    """
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x, weight, group_size, scale_and_zero)
    return product


# Operators that turn rows of codes into float32, by the bits of a code.
ROWWISE: Final[Mapping[int, str]] = {
    2: "embedding_bag_2bit_unpack",
    4: "embedding_bag_4bit_unpack",
    8: "embedding_bag_byte_unpack",
}


@functools.cache
def product_dtype() -> torch.dtype:
    """Return what many tokens are multiplied in: bfloat16 where the processor multiplies it, else float32."""
    known = torch.cpu.get_capabilities()
    able = any(known.get(name) for name in ("avx512_bf16", "amx_bf16", "bf16"))
    return torch.bfloat16 if able else torch.float32


def unpack_rowwise(rows: Tensor, bits: int) -> Tensor:
    """Return ``code * scale + offset``, float32 (rows, columns), of uint8 `rows`.

    A row holds the packed codes of `bits` bits, then scale and offset: two of float16, or float32 for 8 bits.
    """
    operator: Callable[[Tensor], Tensor] = getattr(torch.ops.quantized, ROWWISE[bits])
    return operator(rows)


@functools.cache
def int8_works() -> bool:
    """Tell whether `sum_int8_products` gives exact sums here, also of the largest products."""

    def check() -> bool:
        weight = (torch.arange(16 * 64).view(16, 64) * 37 % 256 - 128).to(torch.int8)
        weight[0], weight[1] = 127, -128
        codes = (torch.arange(3 * 64).view(3, 64) * 101 % 256).to(torch.uint8)
        codes[0] = 255
        return torch.equal(
            sum_int8_products(codes, 3, PackedInt8.of(weight)), (codes.float() - 3) @ weight.float().T
        )

    return _works("onednn.qlinear_pointwise", check)


@functools.cache
def by_int8_works() -> bool:
    """Tell whether `multiply_by_int8` gives right sums here."""

    def check() -> bool:
        weight = (torch.arange(16 * 32).view(16, 32) * 37 % 256 - 128).to(torch.int8)
        x = _small_integers(1, 32)
        return torch.equal(multiply_by_int8(x, weight), (x.float() @ weight.float().T).bfloat16())

    return _works("_weight_int8pack_mm", check)


@functools.cache
def by_int4_works() -> bool:
    """Tell whether `multiply_by_int4` gives right sums here."""

    def check() -> bool:
        codes = (torch.arange(32 * 64).view(32, 64) * 7 % 16).to(torch.int32)
        grid = torch.tensor([1.0, 2.0]).bfloat16().expand(2, 32, 2).contiguous()
        x = _small_integers(2, 64)
        expected = (x.float() @ (codes.float() - 6).T).bfloat16()
        return torch.equal(multiply_by_int4(x, pack_int4(codes), 32, grid), expected)

    return _works("_weight_int4pack_mm_for_cpu", check)


@functools.cache
def rowwise_works(bits: int) -> bool:
    """Tell whether `unpack_rowwise` reads codes of `bits` bits here as they are packed."""

    def check() -> bool:
        codes = torch.arange(3 * 64).view(3, 64) * 37 % 2**bits
        grid = torch.tensor([0.5, -3.0], dtype=torch.float32 if bits == 8 else torch.float16)
        rows = torch.cat([pack(codes, bits), grid.view(torch.uint8).expand(3, -1)], 1)
        return torch.equal(unpack_rowwise(rows, bits), codes * 0.5 - 3.0)

    return _works(ROWWISE[bits], check)


def _small_integers(rows: int, columns: int) -> Tensor:
    """Return integers from -2 to 2: sums of their products are exact in float32."""
    return (torch.arange(rows * columns).view(rows, columns) * 3 % 5 - 2).bfloat16()


def _works(name: str, check: Callable[[], bool]) -> bool:
    """Return the result of `check`, and False with a warning where it raises an error or is false."""
    try:
        with torch.no_grad():
            works, reason = check(), "its sums are wrong on this processor"
    except (RuntimeError, AttributeError, NotImplementedError, TypeError) as error:
        works, reason = False, str(error).partition("\n")[0]
    if not works:
        warnings.warn(f"{name} is not used: {reason}", RuntimeWarning, stacklevel=2)
    return works
