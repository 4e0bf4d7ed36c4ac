"""Floating-point formats: the same numbers as tables, torch and ml_dtypes have, and the laws of grids."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP6,
    NVFP4,
    Element,
    FloatFormat,
    MSESpec,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
)
from tico_observers import (
    AffineParams,
    HistogramStatistic,
    dequantize,
    fake_quantize,
    fake_quantize_blocks,
    least_error_params,
    pack,
    params_from_range,
    params_per_token,
    quantize,
    round_tokens,
    unpack,
)
from tico_observers.float_formats import (
    decode_elements,
    decode_scales,
    element_values,
    encode_elements,
    encode_scales,
    nearby_scales,
    round_elements,
    scales_of,
    tensor_scale_of,
)
from tico_observers.testing import float_formats, tensors

every_format = pytest.mark.parametrize("dtype", FLOAT_FORMATS, ids=str)
blocks = st.sampled_from([dtype for dtype in FLOAT_FORMATS if dtype.block_size])
weights = tensors(shape=(3, 35), dtype=torch.float32, largest=2.0**20)


def many_numbers() -> Tensor:
    """Return 2**20 float32 numbers of all exponents, and as many near 1, both signs, in a fixed order."""
    generator = torch.Generator().manual_seed(0)
    bits = torch.randint(-(2**31), 2**31, (2**20,), generator=generator)
    wild = bits.to(torch.int32).view(torch.float32)
    return torch.cat([wild[wild.isfinite()], torch.randn(2**20, generator=generator) * 8])


NUMBERS = many_numbers()


def nearest_in_table(x: Tensor, element: Element) -> tuple[Tensor, Tensor]:
    """Return the nearest number of a table and its code, found by the middles between neighbours."""
    count = element.values.index(element.largest) + 1
    table = torch.tensor(element.values[:count], dtype=torch.float64)
    middles = (table[1:] + table[:-1]) / 2
    size = x.double().abs()
    place = torch.searchsorted(middles, size)  # a tie is at the lower neighbour
    tie = (place < len(middles)) & (middles[place.clamp(max=len(middles) - 1)] == size) & (place % 2 == 1)
    place = place + tie.long()
    signed = torch.where(x < 0, -table[place], table[place]) + 0.0
    negative = 2**element.bits - place if not element.exponent_bits else place + 2 ** (element.bits - 1)
    return signed, torch.where(signed < 0, negative, place)


def ties(element: Element) -> Tensor:
    """Return all numbers in the middle of two neighbours, of both signs."""
    count = element.values.index(element.largest) + 1
    table = torch.tensor(element.values[:count])
    middles = (table[1:] + table[:-1]) / 2
    return torch.cat([middles, -middles])


@every_format
@pytest.mark.parametrize("wide", [torch.float32, torch.float64])
def test_rounding_is_the_nearest_number_of_a_table(dtype: FloatFormat, wide: torch.dtype) -> None:
    """Two million numbers, all ties, and the neighbours of all ties."""
    middles = ties(dtype.encoding)
    beside = [torch.nextafter(middles, torch.tensor(end)) for end in (torch.inf, -torch.inf)]
    x = torch.cat([NUMBERS, middles, *beside])
    values, codes = nearest_in_table(x, dtype.encoding)
    found = round_elements(x.to(wide), dtype.encoding)
    assert torch.equal(found.double(), values)
    assert not bool((found.signbit() & (found == 0)).any())
    assert torch.equal(encode_elements(found, dtype.encoding).long(), codes)


@pytest.mark.parametrize(
    ("name", "torch_dtype"), [("e4m3", torch.float8_e4m3fn), ("e5m2", torch.float8_e5m2)]
)
def test_fp8_is_torch_s_own_cast(name: str, torch_dtype: torch.dtype) -> None:
    """For what does not saturate, bit for bit, but for the sign of zeros; and every code of torch's."""
    element = (FP8("e4m3") if name == "e4m3" else FP8("e5m2")).encoding
    x = NUMBERS.clamp(-element.largest, element.largest)
    cast = x.to(torch_dtype)
    assert torch.equal(round_elements(x, element), cast.float())
    plain = cast.float() != 0
    assert torch.equal(encode_elements(cast.float(), element)[plain], cast.view(torch.uint8)[plain])
    codes = torch.arange(256, dtype=torch.uint8)
    expected = codes.view(torch_dtype).float()
    found = decode_elements(codes, element)
    assert torch.equal(found.nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5))
    assert torch.equal(found.isnan(), expected.isnan())


@pytest.mark.parametrize(
    ("dtype", "numpy_dtype"),
    [
        (FP8("e4m3"), ml_dtypes.float8_e4m3fn),
        (FP8("e5m2"), ml_dtypes.float8_e5m2),
        (MXFP6("e2m3"), ml_dtypes.float6_e2m3fn),
        (MXFP6("e3m2"), ml_dtypes.float6_e3m2fn),
        (MXFP4(), ml_dtypes.float4_e2m1fn),
    ],
    ids=str,
)
def test_elements_are_those_of_ml_dtypes(dtype: FloatFormat, numpy_dtype: type) -> None:
    """Every code, all ties, and a million numbers within the range."""
    element = dtype.encoding
    codes = np.arange(2**dtype.bits, dtype=np.uint8)
    expected = torch.from_numpy(codes.view(numpy_dtype).astype(np.float32))
    assert torch.equal(element_values(element).nan_to_num(nan=0.5), expected.nan_to_num(nan=0.5))
    x = torch.cat([NUMBERS[NUMBERS.abs() <= element.largest], ties(element)])
    cast = torch.from_numpy(x.numpy().astype(numpy_dtype).astype(np.float32))
    assert torch.equal(round_elements(x, element), cast)


def test_powers_of_two_are_those_of_ml_dtypes() -> None:
    """Every code of E8M0 that float32 holds as a normal number: all but 0 and 255."""
    codes = np.arange(1, 255, dtype=np.uint8)
    expected = torch.from_numpy(codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32))
    scales = decode_scales(torch.from_numpy(codes), MXFP4())
    assert torch.equal(scales, expected)
    assert torch.equal(encode_scales(scales, MXFP4()), torch.from_numpy(codes))


@every_format
def test_what_is_not_finite_is_a_defined_case(dtype: FloatFormat) -> None:
    """On a fixed grid NaN stays NaN and infinity saturates; codes of it are refused."""
    params = grid_of(torch.tensor([[1.0, -3.0]]), dtype)
    special = torch.tensor([[torch.nan, torch.inf]])
    top = fake_quantize(torch.tensor([[0.0, 1e30]]), params)[0, 1]
    assert fake_quantize(special, params)[0].tolist()[1] == top.item()
    assert bool(fake_quantize(special, params)[0, 0].isnan())
    with pytest.raises(NumericsError):
        quantize(special, params)


@pytest.mark.parametrize(("name", "code"), [("e4m3", 0x7F), ("e4m3", 0xFF), ("e5m2", 0x7C), ("e5m2", 0xFE)])
def test_codes_of_nan_and_infinity_are_refused(name: str, code: int) -> None:
    """They are no values of a weight."""
    dtype = FP8("e4m3") if name == "e4m3" else FP8("e5m2")
    params = AffineParams(scale=torch.tensor(1.0), zero_point=torch.tensor(0), dtype=dtype)
    with pytest.raises(NumericsError, match="infinity or NaN"):
        dequantize(torch.tensor([0, code], dtype=torch.uint8), params)


def grid_of(x: Tensor, dtype: FloatFormat) -> AffineParams:
    """Return the grid of a matrix, in blocks along its rows, or per row."""
    size = dtype.block_size or x.shape[1]
    filled = torch.nn.functional.pad(x, (0, -x.shape[1] % size)).view(len(x), -1, size)
    unit = PerGroup(axis=1, size=size)
    return params_from_range(filled.amin(-1), filled.amax(-1), dtype, symmetric=True, granularity=unit)


@given(weights, float_formats())
def test_codes_and_values_agree(x: Tensor, dtype: FloatFormat) -> None:
    """Fq = dequantize ∘ quantize, bit for bit, and packing changes nothing."""
    params = grid_of(x, dtype)
    codes = quantize(x, params)
    assert torch.equal(unpack(pack(codes, dtype.bits), dtype.bits, codes.shape), codes)
    assert same_bits(dequantize(codes, params), fake_quantize(x, params))


@given(weights, float_formats())
def test_rounding_is_idempotent(x: Tensor, dtype: FloatFormat) -> None:
    """fq(fq(x)) = fq(x), bit for bit."""
    params = grid_of(x, dtype)
    once = fake_quantize(x, params)
    assert same_bits(fake_quantize(once, params), once)


@given(tensors(shape=(1, 40), dtype=torch.float32, largest=2.0**20), float_formats())
def test_rounding_is_monotone_and_odd(x: Tensor, dtype: FloatFormat) -> None:
    """On one grid, larger numbers have no smaller values, and -x has the value -fq(x)."""
    ordered = x.sort().values
    scale = params_from_range(x.amin(), x.amax(), FP8(), symmetric=True, granularity=PerTensor()).scale
    params = AffineParams(
        scale=decode_scales(encode_scales(scale, dtype, scale), dtype, scale),
        zero_point=torch.tensor(0),
        dtype=dtype,
        tensor_scale=scale if dtype == NVFP4() else None,
    )
    values = fake_quantize(ordered, params)
    assert bool((values.diff() >= 0).all())
    assert torch.equal(fake_quantize(-ordered, params), -values)


@given(weights, float_formats(), st.integers(-30, 30))
def test_a_power_of_two_scales_everything(x: Tensor, dtype: FloatFormat, power: int) -> None:
    """fq(2ᵏx) = 2ᵏ fq(x) with the grid of each, where nothing is subnormal."""
    x = torch.where(x.abs() < 2.0**-40, 0.0, x)
    moved = x * 2.0**power
    assert same_bits(
        fake_quantize(moved, grid_of(moved, dtype)), fake_quantize(x, grid_of(x, dtype)) * 2.0**power
    )


@given(weights, float_formats())
def test_no_other_number_of_the_grid_is_nearer(x: Tensor, dtype: FloatFormat) -> None:
    """Within the range, up to the rounding of the quotient, 2**-23 of it, and of the product."""
    params = grid_of(x, dtype)
    scale = params.scale.double().repeat_interleave(dtype.block_size or 35, 1)[:, :35]
    element = dtype.encoding
    grid = torch.tensor([v for v in element.values if abs(v) <= element.largest], dtype=torch.float64)
    distances = (x.double().unsqueeze(-1) - scale.unsqueeze(-1) * grid).abs().amin(-1)
    error = (fake_quantize(x, params).double() - x.double()).abs()
    assert bool((error <= distances + (x.double().abs() + scale * element.largest) * 2.0**-22).all())


@given(tensors(shape=(2, 40), dtype=torch.float32, largest=2.0**60), blocks)
def test_blocks_that_bring_their_scale_are_on_the_grid_of_the_range(x: Tensor, dtype: FloatFormat) -> None:
    """Dynamic and static scales follow from the same rule, where float32 has normal numbers for them."""
    x = torch.where(x.abs() < 2.0**-60, 0.0, x)
    assert torch.equal(fake_quantize_blocks(x, dtype), fake_quantize(x, grid_of(x, dtype)))


@given(tensors(shape=(4, 9), dtype=torch.float32, largest=2.0**60), st.sampled_from(["e4m3", "e5m2"]))
def test_tokens_have_the_grid_of_their_range(x: Tensor, name: str) -> None:
    """The short way of `round_tokens` gives the bits of `params_per_token`."""
    dtype = FP8("e4m3") if name == "e4m3" else FP8("e5m2")
    params = params_per_token(x, dtype, symmetric=True)
    assert params.granularity == PerToken()
    assert same_bits(round_tokens(x, dtype, symmetric=True), fake_quantize(x, params))


@given(weights, float_formats())
def test_a_searched_scale_errs_no_more_than_the_rule(x: Tensor, dtype: FloatFormat) -> None:
    """On the histogram that is searched, in every unit: the rule's own scale is among the candidates."""
    seen = HistogramStatistic(granularity=PerChannel(0)).observe(x)
    best = least_error_params(seen, MSESpec(20), dtype)
    largest = x.abs().amax(1)
    unit = best.tensor_scale
    rule = scales_of(torch.where(largest < 2.0**-126, 0.0, largest), dtype, unit)
    assert any(torch.equal(each, rule) for each in nearby_scales(rule, dtype, 20, unit))
    values, units = seen.values(), seen.units()

    def error(scale: Tensor) -> Tensor:
        each = scale.double()[units]
        moved = round_elements(values / each, dtype.encoding) * each
        squares = (moved - values).square() * seen.counts
        return torch.zeros(3, dtype=torch.float64).index_add_(0, units, squares)

    assert bool((error(best.scale) <= error(rule)).all())


@given(tensors(shape=(7,), dtype=torch.float32, largest=2.0**20))
def test_scales_of_nvfp4_are_stored_exactly(x: Tensor) -> None:
    """Codes of 8 bits and a float32 of the tensor give the float32 scales back; none of them is 0."""
    largest = x.abs()
    unit = tensor_scale_of(largest)
    scale = scales_of(largest, NVFP4(), unit)
    codes = encode_scales(scale, NVFP4(), unit)
    assert same_bits(decode_scales(codes, NVFP4(), unit), scale)
    assert 0 < int(codes.min()) <= int(codes.max()) <= 0x7E
    if float(largest.max()) > 2.0**-100:
        assert int(codes[largest.argmax()]) == 0x7E  # 448, the largest scale


@pytest.mark.parametrize(
    ("largest", "exponent"),
    [(1.0, -2), (1.99, -2), (2.0, -1), (4.0, 0), (7.99, 0), (8.0, 1), (2.0**-126, -126), (3e38, 125)],
)
def test_the_scale_of_mxfp4_is_that_of_the_standard(largest: float, exponent: int) -> None:
    """2 to the power of floor(log2(amax)) - 2, OCP MX 1.0 section 6.3, as far as float32 is normal."""
    assert scales_of(torch.tensor(largest), MXFP4()).item() == 2.0**exponent


@every_format
def test_a_scale_that_cannot_be_stored_is_refused(dtype: FloatFormat) -> None:
    """A power of two, or an e4m3 multiple of the tensor's scale, is what these formats have."""
    unit = torch.tensor(1.0) if dtype == NVFP4() else None

    def make(scale: float, zero_point: int) -> AffineParams:
        numbers = torch.tensor(scale), torch.tensor(zero_point)
        return AffineParams(scale=numbers[0], zero_point=numbers[1], dtype=dtype, tensor_scale=unit)

    if dtype.scale_format == "float32":
        assert make(0.3, 0).scale.item() == torch.tensor(0.3).item()
    else:
        with pytest.raises(NumericsError, match="scale"):
            make(0.3, 0)
    with pytest.raises(NumericsError, match="zero point"):
        make(1.0, 1)
