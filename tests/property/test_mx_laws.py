"""Microscaling: blocks of 32 that share a power of two."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import MX_ELEMENTS, mx_block, same_bits
from tico_config import FloatFormat
from tico_observers import fake_quantize_blocks
from tico_observers.testing import float_dtypes, layouts, tensors

formats = st.sampled_from(list(MX_ELEMENTS))
blocks = tensors(shape=(8,), dtype=torch.float32, largest=torch.finfo(torch.float32).max)
usual = tensors(shape=(2, 5), dtype=torch.float32, largest=2.0**20)


@given(blocks, formats)
def test_mx_is_its_definition(x: Tensor, element: FloatFormat) -> None:
    """The specification's conversion, carried out on fractions."""
    assert fake_quantize_blocks(x, element).tolist() == mx_block(x.tolist(), element)


@given(tensors(shape=(8,), dtype=torch.float64, largest=1e300), formats)
def test_mx_of_float64_is_its_definition(x: Tensor, element: FloatFormat) -> None:
    """Beyond the exponents of the shared scale, values saturate or vanish as the definition says."""
    assert fake_quantize_blocks(x, element).tolist() == mx_block(x.tolist(), element)


@given(st.data(), formats, float_dtypes())
def test_mx_is_idempotent(data: st.DataObject, element: FloatFormat, dtype: torch.dtype) -> None:
    """fq(fq(x)) = fq(x), bit for bit, in every format of x."""
    x = data.draw(tensors(shape=(8,), dtype=dtype, largest=torch.finfo(dtype).max))
    once = fake_quantize_blocks(x, element)
    assert same_bits(fake_quantize_blocks(once, element), once)


@given(blocks, formats)
def test_mx_is_odd(x: Tensor, element: FloatFormat) -> None:
    """fq(-x) = -fq(x)."""
    assert torch.equal(fake_quantize_blocks(-x, element), -fake_quantize_blocks(x, element))


@given(tensors(shape=(8,), dtype=torch.float64, largest=2.0**20), formats, st.integers(-20, 20))
def test_mx_is_equivariant_under_powers_of_two(x: Tensor, element: FloatFormat, power: int) -> None:
    """fq(2^k * x) = 2^k * fq(x), where the shared scale has room."""
    if x.abs().max() > 2.0**-60:
        one, other = (fake_quantize_blocks(each, element) for each in (x, x * 2.0**power))
        assert same_bits(other, one * 2.0**power)


@given(st.data(), formats, st.integers(1, 40))
def test_mx_blocks_are_quantized_alone(data: st.DataObject, element: FloatFormat, columns: int) -> None:
    """A block's values are those of a tensor that holds it alone, a shorter last one too."""
    short = data.draw(tensors(shape=(8,), dtype=torch.float32))
    x = short.repeat(10)[: 32 + columns]
    whole = fake_quantize_blocks(x, element)
    alone = [fake_quantize_blocks(part, element) for part in (x[:32], x[32:64], x[64:])]
    assert same_bits(whole, torch.cat(alone))


@given(usual, formats)
def test_mx_axis_is_a_transpose(x: Tensor, element: FloatFormat) -> None:
    """Blocks along the first axis are blocks along the last one of the transpose."""
    along_first = fake_quantize_blocks(x, element, 0)
    assert same_bits(along_first, fake_quantize_blocks(x.T, element).T.contiguous())
    assert same_bits(along_first, fake_quantize_blocks(x, element, -2))


@given(st.data(), usual, formats)
def test_mx_does_not_depend_on_the_layout(data: st.DataObject, x: Tensor, element: FloatFormat) -> None:
    """Strides, offsets and expansion do not matter."""
    other = fake_quantize_blocks(data.draw(layouts(x)), element)
    assert same_bits(other.contiguous(), fake_quantize_blocks(x, element))


@given(blocks, formats)
def test_mx_errs_by_a_quarter_of_the_largest_value(x: Tensor, element: FloatFormat) -> None:
    """abs(fq(x) - x) <= max(abs(x)) / 4: no format is coarser, saturation included."""
    wide = x.double()
    errors = (fake_quantize_blocks(x, element).double() - wide).abs()
    assert float(errors.max()) <= max(float(wide.abs().max()) / 4, 2.0**-130)
