"""Codes of 2 to 16 bits as bytes.

Layout: along the last axis, code i occupies bits ``[i * bits, (i + 1) * bits)`` of a little-endian bit
string that is padded with zero bits to whole bytes. Each row starts at a byte of its own. Codes of more
than 8 bits take two bytes each.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tico_config import ConfigError, Found, NumericsError, Problem
from tico_observers._tensor_checks import is_scripted, require_integers


def packed_width(columns: int, bits: int) -> int:
    """Return the number of bytes that a row of `columns` codes takes.

    >>> packed_width(5, bits=3), packed_width(5, bits=12)
    (2, 10)
    """
    return 2 * columns if bits > 8 else -(-columns * bits // 8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """Return unsigned `codes` (..., columns) as uint8 of shape (..., packed_width(columns, bits)).

    Raises:
        ConfigError: `bits` is not 2 to 16.
        UnsupportedError: `codes` are no integers.
        NumericsError: a code is negative or needs more than `bits` bits.

    >>> pack(torch.tensor([1, 2, 3]), 4).tolist()
    [33, 3]
    """
    _require_bits(bits)
    require_integers(codes, "codes", "pack")
    if codes.dtype == torch.uint8 and bits == 8:
        return codes.contiguous()
    low, high = (int(end) for end in torch.aminmax(codes)) if codes.numel() else (0, 0)
    if low < 0 or high >= 2**bits:
        found = Found(f"{low} to {high}")
        span = f"from 0 to {2**bits - 1}"
        sentence = f"the codes go from {found}, and those of {bits} bits {span}"
        raise NumericsError(Problem(field="codes", value=found, expected=span, sentence=sentence))
    if bits in (2, 4):
        return _gathered(codes, bits)
    *rows, columns = codes.shape
    wide = codes.to(torch.int64)
    if bits > 8:
        return torch.stack([wide & 255, wide >> 8], -1).reshape(*rows, 2 * columns).to(torch.uint8)
    words = torch.nn.functional.pad(wide, (0, -columns % 8)).reshape(*rows, -(-columns // 8), 8)
    word = (words << _shifts(bits, 8, codes)).sum(-1, keepdim=True)
    packed = (word >> _shifts(8, bits, codes)) & 255
    return packed.flatten(-2)[..., : packed_width(columns, bits)].to(torch.uint8).contiguous()


def unpack(packed: Tensor, bits: int, shape: Sequence[int]) -> Tensor:
    """Return the codes of the given `shape` that `packed` holds: uint8, or int32 above 8 bits.

    Raises:
        ConfigError: `bits` is not 2 to 16.
        NumericsError: `packed` is not of the shape that `shape` needs.

    >>> unpack(torch.tensor([33, 3], dtype=torch.uint8), 4, (3,)).tolist()
    [1, 2, 3]
    """
    _require_bits(bits)
    *rows, columns = shape
    expected = (*rows, packed_width(columns, bits))
    if tuple(packed.shape) != expected or packed.dtype != torch.uint8:
        found = Found(f"{packed.dtype} of shape {tuple(packed.shape)}")
        wanted = f"torch.uint8 of shape {expected}"
        sentence = f"codes of {bits} bits of shape {tuple(shape)} take {wanted}, not {found}"
        problem = Problem(field="packed", value=found, expected=wanted, sentence=sentence)
        raise NumericsError(problem)
    if bits == 8:
        return packed
    if bits > 8:
        low, high = packed.to(torch.int32).reshape(*shape, 2).unbind(-1)
        return low | (high << 8)
    if torch.compiler.is_exporting() or is_scripted():
        codes = _parts(packed, bits, columns)
    else:
        codes = _spread(packed, bits) if bits in (2, 4) else _words(packed, bits, columns)
    narrow: Tensor = codes[..., :columns]
    return narrow


def _gathered(codes: Tensor, bits: int) -> Tensor:
    """Return codes of 2 or 4 bits, those of as many bytes as fit moved into one, all at once."""
    (*rows, columns), count = codes.shape, 8 // bits
    narrow = torch.nn.functional.pad(codes.to(torch.uint8), (0, -columns % count)).contiguous()
    word = narrow.view(*rows, -(-columns // count), count).view(torch.int16 if bits == 4 else torch.int32)
    word = word.squeeze(-1)
    packed = word.clone()
    for step in range(1, count):
        packed |= word >> (8 - bits) * step
    return (packed & 255).to(torch.uint8)


def _spread(packed: Tensor, bits: int) -> Tensor:
    """Return the codes of 2 or 4 bits, each byte spread over as many bytes as it has codes, all at once."""
    wide, mask = (torch.int16, 0x0F0F) if bits == 4 else (torch.int32, 0x03030303)
    word = packed.contiguous().to(wide)
    parts = word.clone()
    for step in range(1, 8 // bits):
        parts |= word << (8 - bits) * step
    codes: Tensor = (parts & mask).view(torch.uint8)
    return codes


def _parts(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return what `_spread` and `_words` do, by operators that programs of other formats have too.

    They know neither a view in another dtype nor a shift by numbers in a tensor.
    """
    wide = packed.to(torch.int32)
    if bits not in (2, 4):
        count = -(-columns // 8)
        wide = torch.nn.functional.pad(wide, (0, count * bits - packed.shape[-1]))
        wide = wide.reshape(*packed.shape[:-1], count, bits)
        parts = [_part(wide, start, bits) for start in range(0, 8 * bits, bits)]
    else:
        parts = [(wide >> shift) & (2**bits - 1) for shift in range(0, 8, bits)]
    return torch.stack(parts, -1).flatten(-2).to(torch.uint8)


def _part(wide: Tensor, start: int, bits: int) -> Tensor:
    """Return the code from bit `start` on of each run of bytes, which may go on in the next byte."""
    place, shift = divmod(start, 8)
    word = wide[..., place]
    if shift + bits > 8:
        word = word + wide[..., place + 1] * 256
    code: Tensor = (word >> shift) & (2**bits - 1)
    return code


def _words(packed: Tensor, bits: int, columns: int) -> Tensor:
    """Return the codes of 3, 5, 6 or 7 bits, by way of an integer for each eight of them."""
    wide = torch.int32 if bits == 3 else torch.int64
    count = -(-columns // 8)
    padded = torch.nn.functional.pad(packed.to(wide), (0, count * bits - packed.shape[-1]))
    parts = padded.reshape(*packed.shape[:-1], count, bits) << _shifts(8, bits, packed, wide)
    word = parts.sum(-1, keepdim=True, dtype=wide)
    codes: Tensor = (word >> _shifts(bits, 8, packed, wide)) & (2**bits - 1)
    flat: Tensor = codes.to(torch.uint8).flatten(-2)
    return flat


def _shifts(step: int, count: int, like: Tensor, dtype: torch.dtype = torch.int64) -> Tensor:
    return torch.arange(0, step * count, step, device=like.device, dtype=dtype)


def _require_bits(bits: int) -> None:
    if type(bits) is not int or not 2 <= bits <= 16:
        raise ConfigError(Problem(field="bits", value=bits, expected="an integer from 2 to 16"))
