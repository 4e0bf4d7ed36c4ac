"""Scales on two levels, and the bytes of super-blocks."""

from __future__ import annotations

import struct

import torch
from hypothesis import given
from hypothesis import strategies as st

from tico_export.gguf_files import six_bit_bytes, two_levels

units = st.floats(2.0**-24, 65504, width=16)
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
