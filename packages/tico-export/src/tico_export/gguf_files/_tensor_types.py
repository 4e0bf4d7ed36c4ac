"""The types of tensors in files of GGUF, and the blocks of codes that are their bytes."""

from __future__ import annotations

import ctypes
import math
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor

BLOCK: Final = 32
"""The columns of a block of codes."""

SUPER_BLOCK: Final = 256
"""The columns of a super-block, whose blocks' scales share a scale."""


@attrs.frozen(kw_only=True)
class TensorType:
    """How a tensor's values are stored.

    Attributes:
        name: what llama.cpp calls it.
        number: what it is in a file.
        file_type: what a file is called that holds mostly tensors of this type.
        block: the values that are stored together.
        block_bytes: what they take.
        smallest: the least signal-to-noise ratio, in dB, that llama.cpp leaves of the inputs of such a
            weight, which it converts before it multiplies.
    """

    name: str
    number: int
    file_type: int
    block: int = 1
    block_bytes: int
    smallest: float

    def bytes_of(self, shape: tuple[int, ...]) -> int:
        """Return the bytes of a tensor of `shape`."""
        return math.prod(shape) // self.block * self.block_bytes


# Rounding inputs to floats of b bits errs by at most half a step, 2 ** -b of the value, evenly spread.
def _float_noise(bits: int) -> float:
    return 20 * math.log10(2**bits) + 10 * math.log10(3)


# Inputs become 8 bits for each block: a noise of a twelfth of a squared step, a step being the largest value
# over 127, which is at most the square root of the block's columns times the root mean square.
def _coded_noise(block: int) -> float:
    return 10 * math.log10(12 * 127**2 / block)


F32: Final = TensorType(name="F32", number=0, file_type=0, block_bytes=4, smallest=80.0)
F16: Final = TensorType(name="F16", number=1, file_type=1, block_bytes=2, smallest=_float_noise(11))
BF16: Final = TensorType(name="BF16", number=30, file_type=32, block_bytes=2, smallest=_float_noise(8))

FLOAT_TYPES: Final = {torch.float32: F32, torch.float16: F16, torch.bfloat16: BF16}


@attrs.frozen(kw_only=True)
class BlockType(TensorType):
    """Codes in blocks of 32 columns, with a scale of float16.

    ``value = d * (q + lowest)``, or ``d * q + m`` where there is a minimum m of float16; q has `bits`.

    Attributes:
        bits: the bits of a code.
        has_minimum: whether there is a minimum.
    """

    bits: int
    has_minimum: bool = False
    block: int = BLOCK
    smallest: float = _coded_noise(BLOCK)

    @property
    def lowest(self) -> int:
        """The value of the code 0 in steps; 0 where there is a minimum."""
        return 0 if self.has_minimum else -(1 << (self.bits - 1))

    @property
    def highest(self) -> int:
        """The value of the largest code in steps, from the minimum where there is one."""
        return self.lowest + (1 << self.bits) - 1


Q4_0: Final = BlockType(name="Q4_0", number=2, file_type=2, block_bytes=18, bits=4)
Q4_1: Final = BlockType(name="Q4_1", number=3, file_type=3, block_bytes=20, bits=4, has_minimum=True)
Q5_0: Final = BlockType(name="Q5_0", number=6, file_type=8, block_bytes=22, bits=5)
Q5_1: Final = BlockType(name="Q5_1", number=7, file_type=9, block_bytes=24, bits=5, has_minimum=True)
Q8_0: Final = BlockType(name="Q8_0", number=8, file_type=7, block_bytes=34, bits=8)

MXFP4_BLOCKS: Final = TensorType(
    name="MXFP4", number=39, file_type=38, block=BLOCK, block_bytes=17, smallest=_coded_noise(BLOCK)
)

BLOCK_TYPES: Final = (Q4_0, Q4_1, Q5_0, Q5_1, Q8_0)
"""From the one that takes the fewest bytes."""


@attrs.frozen(kw_only=True)
class SuperBlockType(TensorType):
    """Codes in super-blocks of 256 columns, with a scale of float16 for the integer scales of their blocks.

    ``value = d * s * q``, or ``d * s * q - dmin * m`` where there are offsets; q has `bits`.

    Attributes:
        bits: the bits of a code.
        group: the columns of a block.
        scale_bits: the bits of the positive integers s.
        offset_bits: the bits of the integers m, None where there are none.
    """

    bits: int
    group: int
    scale_bits: int
    offset_bits: int | None = None
    block: int = SUPER_BLOCK
    smallest: float = _coded_noise(SUPER_BLOCK)

    @property
    def blocks(self) -> int:
        """The blocks of a super-block."""
        return self.block // self.group


Q4_K: Final = SuperBlockType(
    name="Q4_K", number=12, file_type=14, block_bytes=144, bits=4, group=32, scale_bits=6, offset_bits=6
)
Q5_K: Final = SuperBlockType(
    name="Q5_K", number=13, file_type=16, block_bytes=176, bits=5, group=32, scale_bits=6, offset_bits=6
)
Q6_K: Final = SuperBlockType(
    name="Q6_K", number=14, file_type=18, block_bytes=210, bits=6, group=16, scale_bits=7
)


Levels: TypeAlias = tuple[Tensor, Tensor]
"""What a super-block shares, float16 (rows, super-blocks), and integers (rows, super-blocks, blocks)."""


def six_bit_bytes(codes: Tensor, unit: Tensor, steps: Tensor) -> bytes:
    """Return the bytes of a matrix in super-blocks of Q6_K.

    Args:
        codes: q, integers from -32 to 31 (rows, columns).
        unit: d, float16 (rows, super-blocks).
        steps: s, integers up to 127 (rows, super-blocks, blocks).
    """
    # Halves of 128 codes, each in four runs of 32.
    stored = (codes + 32).to(torch.uint8).reshape(*unit.shape, 2, 4, BLOCK)
    low, high = stored & 15, stored >> 4
    nibbles = low[..., :2, :] | (low[..., 2:, :] << 4)
    pairs = high[..., 0, :] | (high[..., 1, :] << 2) | (high[..., 2, :] << 4) | (high[..., 3, :] << 6)
    parts = [nibbles.flatten(2), pairs.flatten(2), steps.to(torch.int8).view(torch.uint8), _halves(unit)]
    return tensor_bytes(torch.cat(parts, -1))


def offset_block_bytes(kind: SuperBlockType, codes: Tensor, scales: Levels, offsets: Levels) -> bytes:
    """Return the bytes of a matrix in super-blocks with offsets, of Q4_K or Q5_K.

    Args:
        kind: the type.
        codes: q, integers from 0 (rows, columns).
        scales: d and s; the integers have up to 6 bits.
        offsets: dmin and m, likewise.
    """
    unit, steps = scales
    stored = codes.to(torch.uint8).reshape(*unit.shape, kind.blocks, BLOCK)
    parts = [_halves(unit), _halves(offsets[0]), _pairs_of_six_bits(steps, offsets[1])]
    if kind.bits == 5:
        # The fifth bits of a column of all blocks are a byte, the first block's in the lowest bit.
        places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=stored.device)
        parts.append(((stored >> 4) * places.unsqueeze(-1)).sum(-2).to(torch.uint8))
    nibbles = stored & 15
    # Of two blocks, the first stands in the low bits of their bytes, the second in the high ones.
    parts.append((nibbles[..., ::2, :] | (nibbles[..., 1::2, :] << 4)).flatten(2))
    return tensor_bytes(torch.cat(parts, -1))


def _pairs_of_six_bits(steps: Tensor, counts: Tensor) -> Tensor:
    """Return eight pairs of integers of 6 bits as twelve bytes.

    The first four of each stand in the low bits of four bytes. The others' low four bits share four bytes,
    and their high two are the high bits of the former.
    """
    one, other = steps.to(torch.uint8), counts.to(torch.uint8)
    first = [each[..., :4] | ((each[..., 4:] >> 4) << 6) for each in (one, other)]
    return torch.cat([*first, (one[..., 4:] & 15) | ((other[..., 4:] & 15) << 4)], -1)


def block_bytes(kind: BlockType, codes: Tensor, scale: Tensor, minimum: Tensor) -> bytes:
    """Return the bytes of a matrix in blocks.

    Args:
        kind: the type.
        codes: values in steps from `lowest` to `highest`, integers (rows, columns).
        scale: d, float16 (rows, blocks).
        minimum: m, float16 (rows, blocks); not read where the type has none.
    """
    rows = len(codes)
    parts = [_halves(scale)]
    if kind.has_minimum:
        parts.append(_halves(minimum))
    if kind.bits == 8:
        parts.append(codes.to(torch.int8).view(torch.uint8).reshape(rows, -1, BLOCK))
    else:
        stored = (codes - kind.lowest).to(torch.uint8).reshape(rows, -1, BLOCK)
        if kind.bits == 5:
            parts.append(_fifth_bits(stored))
        parts.append(half_bytes(stored & 15))
    return tensor_bytes(torch.cat(parts, -1))


def half_bytes(codes: Tensor) -> Tensor:
    """Return codes of 4 bits (..., 32) as bytes (..., 16): the first half in their low bits."""
    return codes[..., : BLOCK // 2] | (codes[..., BLOCK // 2 :] << 4)


def _halves(values: Tensor) -> Tensor:
    return values.contiguous().view(torch.uint8).reshape(*values.shape, 2)


def _fifth_bits(stored: Tensor) -> Tensor:
    """Return the fifth bits of each block as four bytes, the first code's in the lowest bit."""
    high = (stored >> 4).reshape(*stored.shape[:-1], 4, 8)
    places = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=stored.device)
    return (high * places).sum(-1).to(torch.uint8)


def tensor_bytes(tensor: Tensor) -> bytes:
    """Return the numbers of `tensor` as they lie in memory."""
    held = tensor.detach().cpu().contiguous()
    return ctypes.string_at(held.data_ptr(), held.numel() * held.element_size())
