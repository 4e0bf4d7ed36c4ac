"""Scales on two levels, and the bytes of super-blocks."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tico_config import DType, SuperBlock
from tico_export.gguf_files import (
    Q4_K,
    Q5_K,
    SuperBlockType,
    offset_block_bytes,
    six_bit_bytes,
    two_levels,
)
from tico_modules import PackedWeight

units = st.floats(2.0**-24, 65504, width=16)
eights = st.lists(st.integers(1, 63), min_size=8, max_size=8)
eights_from_0 = st.lists(st.integers(0, 63), min_size=8, max_size=8)
integers = st.lists(st.integers(1, 127), min_size=16, max_size=16)


@given(units, integers)
def test_two_levels_are_found_again(unit: float, steps: list[int]) -> None:
    """Whatever float16 and integers scales are products of, some are found with the same products."""
    scale = torch.tensor(steps, dtype=torch.float32).view(1, 1, 16) * unit
    found = two_levels(scale, 7)
    assert found is not None
    shared, counts = found
    assert torch.equal(shared.float().unsqueeze(-1) * counts, scale)
    assert 1 <= int(counts.min()) <= int(counts.max()) <= 127


@given(units.filter(lambda unit: unit < 500), integers, st.integers(0, 15))
def test_what_is_no_product_has_no_levels(unit: float, steps: list[int], place: int) -> None:
    """A float16 times an integer of 7 bits has at most 18 bits; a scale with more is never one."""
    scale = torch.tensor(steps, dtype=torch.float32).view(1, 1, 16) * unit
    scale[..., place] *= 1 + 2.0**-22
    assert two_levels(scale, 7) is None


@given(st.lists(st.integers(-32, 31), min_size=256, max_size=256), units, integers)
def test_six_bit_bytes_are_their_definition(codes: list[int], unit: float, steps: list[int]) -> None:
    """Code by code: its low four bits, its high two, then the integers and the float16."""
    low, high = bytearray(128), bytearray(64)
    for place, code in enumerate(codes):
        half, run, column = place // 128, place % 128 // 32, place % 32
        stored = code + 32
        low[half * 64 + run % 2 * 32 + column] |= (stored & 15) << (4 if run >= 2 else 0)
        high[half * 32 + column] |= (stored >> 4) << (2 * run)
    expected = bytes(low) + bytes(high) + bytes(steps) + struct.pack("<e", unit)
    shared = torch.tensor([[unit]], dtype=torch.float16)
    assert six_bit_bytes(torch.tensor([codes]), shared, torch.tensor([[steps]])) == expected


@given(st.just(0.0) | units, eights_from_0)
def test_two_levels_of_offsets_may_be_0(unit: float, steps: list[int]) -> None:
    """As where no weight of a group, or of all, is negative."""
    offset = torch.tensor(steps, dtype=torch.float32).view(1, 1, 8) * unit
    found = two_levels(offset, 6)
    assert found is not None
    shared, counts = found
    assert bool(shared.isfinite())
    assert torch.equal(shared.float().unsqueeze(-1) * counts, offset)
    assert 0 <= int(counts.min()) <= int(counts.max()) <= 63


def _read(block: bytes, bits: int) -> list[np.float32]:
    """Return the values of a super-block of Q4_K or Q5_K, each by its definition."""
    unit, lowest = (np.float32(each) for each in np.frombuffer(block[:4], np.float16))
    six, high, low = block[4:16], block[16:-128], block[-128:]
    values = []
    for column in range(256):
        group = column // 32
        if group < 4:
            step, count = six[group] & 63, six[group + 4] & 63
        else:
            shared = six[group + 4]
            step, count = (shared & 15) + (six[group - 4] >> 6) * 16, (shared >> 4) + (six[group] >> 6) * 16
        code = low[group // 2 * 32 + column % 32] >> 4 * (group % 2) & 15
        if bits == 5:
            code += (high[column % 32] >> group & 1) * 16
        # As llama.cpp: two products, then one more, then the difference, each rounded to float32.
        scale, offset = unit * np.float32(step), lowest * np.float32(count)
        values.append(scale * np.float32(code) - offset)
    return values


@pytest.mark.parametrize("kind", [Q4_K, Q5_K], ids=lambda kind: kind.name)
@given(st.data(), units, st.just(0.0) | units, eights, eights_from_0)
def test_super_blocks_with_offsets_are_the_weight(
    kind: SuperBlockType, data: st.DataObject, unit: float, lowest: float, steps: list[int], counts: list[int]
) -> None:
    """What llama.cpp reads in the bytes is the layer's own weight, bit for bit, in the bytes of the type."""
    codes = data.draw(st.lists(st.integers(0, 2**kind.bits - 1), min_size=256, max_size=256))
    shared = [torch.tensor([[each]], dtype=torch.float16) for each in (unit, lowest)]
    integers = [torch.tensor([[each]]) for each in (steps, counts)]
    scale, offset = (one.float() * many[0] for one, many in zip(shared, integers, strict=True))
    weight = PackedWeight.from_codes(
        torch.tensor([codes]),
        scale,
        torch.zeros(1, 8, dtype=torch.int32),
        dtype=DType.uint(kind.bits),
        shape=(1, 256),
        group_size=32,
        offset=offset,
        super_block=SuperBlock(offset_bits=6),
    )
    levels = (shared[0], integers[0]), (shared[1], integers[1])
    content = offset_block_bytes(kind, torch.tensor([codes]), *levels)
    assert len(content) == kind.block_bytes
    assert weight.dequantize()[0].tolist() == [float(each) for each in _read(content, kind.bits)]
