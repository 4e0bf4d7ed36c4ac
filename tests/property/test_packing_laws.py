"""Codes as bytes."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from references import bit_string
from tico_observers import pack, packed_width, unpack
from tico_observers.testing import shapes

Codes = tuple[Tensor, int]


@st.composite
def codes(draw: st.DrawFn, max_bits: int = 16) -> Codes:
    """Draw unsigned codes of any shape, sides of 0 among them, and their number of bits."""
    bits, shape = draw(st.integers(2, max_bits)), draw(shapes(min_side=0, max_side=7))
    count = shape.numel()
    flat = draw(st.lists(st.integers(0, 2**bits - 1), min_size=count, max_size=count))
    return torch.tensor(flat, dtype=torch.int64).view(shape), bits


@given(codes())
def test_unpack_is_the_inverse_of_pack(drawn: Codes) -> None:
    """unpack(pack(q)) = q."""
    values, bits = drawn
    assert torch.equal(unpack(pack(values, bits), bits, values.shape).to(torch.int64), values)


@given(codes())
def test_pack_is_its_definition(drawn: Codes) -> None:
    """Each row is the little-endian bit string of its codes, 16 bits a code above 8."""
    values, bits = drawn
    if values.numel():
        width = 16 if bits > 8 else bits
        rows = values.reshape(-1, values.shape[-1]).tolist()
        packed = pack(values, bits)
        assert packed.reshape(len(rows), -1).tolist() == [bit_string(row, width) for row in rows]


@given(codes())
def test_packed_shape_is_what_packed_width_says(drawn: Codes) -> None:
    """pack(q) has the shape of q with packed_width bytes along the last axis."""
    values, bits = drawn
    assert pack(values, bits).shape == (*values.shape[:-1], packed_width(values.shape[-1], bits))


@given(st.integers(0, 200), st.integers(2, 8))
def test_packing_wastes_less_than_a_byte(columns: int, bits: int) -> None:
    """0 <= 8 * width - bits * columns < 8."""
    assert 0 <= 8 * packed_width(columns, bits) - bits * columns < 8


@given(codes(), st.data())
def test_codes_do_not_touch_their_neighbours(drawn: Codes, data: st.DataObject) -> None:
    """Changing one code changes that one only."""
    values, bits = drawn
    if values.numel():
        index = data.draw(st.integers(0, values.numel() - 1))
        changed = values.clone()
        changed.view(-1)[index] ^= 2**bits - 1
        before, after = (unpack(pack(each, bits), bits, each.shape) for each in (values, changed))
        assert (before != after).flatten().nonzero().flatten().tolist() == [index]


class Unpacked(nn.Module):
    """What reads codes of two rows of 13 from bytes."""

    def __init__(self, bits: int) -> None:
        """Keep the number of bits."""
        super().__init__()
        self.bits = bits

    def forward(self, packed: Tensor) -> Tensor:
        """Return the codes."""
        return unpack(packed, self.bits, (2, 13))


@pytest.mark.parametrize("bits", range(2, 9))
def test_programs_unpack_the_same_codes(bits: int) -> None:
    """An exported program gives the codes too, without operators that ONNX lacks."""
    values = torch.randint(0, 2**bits, (2, 13))
    packed = pack(values, bits)
    program = torch.export.export(Unpacked(bits), (torch.zeros_like(packed),))
    assert torch.equal(program.module()(packed).long(), values)
    operators = {str(node.target) for node in program.graph.nodes}
    assert not operators & {"aten.__lshift__.Tensor", "aten.__rshift__.Tensor", "aten.view.dtype"}
