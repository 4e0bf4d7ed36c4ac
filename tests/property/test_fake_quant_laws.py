"""Quantizing, dequantizing, and both in one."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import exact_code, same_bits
from tico_config import DType, PerChannel, PerGroup, PerTensor
from tico_observers import (
    AffineParams,
    broadcast,
    dequantize,
    fake_quantize,
    params_per_token,
    quantize,
    round_to_grid,
    round_tokens,
)
from tico_observers.testing import float_dtypes, integer_dtypes, layouts, params_for, tensors

matrices = tensors(shape=(4, 3), largest=2.0**64)


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, AffineParams]:
    """Draw a tensor of any float format and a grid of any granularity that fits it."""
    x = draw(matrices)
    return x, draw(params_for(x))


@st.composite
def lines(draw: st.DrawFn) -> tuple[Tensor, AffineParams]:
    """Draw ascending values and one grid for all of them."""
    x = draw(tensors(shape=(12,), largest=2.0**64)).sort().values
    return x, draw(params_for(x, granularity=PerTensor()))


def one_grid(scale: float, zero_point: int, dtype: DType) -> AffineParams:
    """Return the grid of one scale and zero point."""
    return AffineParams(scale=torch.tensor(scale), zero_point=torch.tensor(zero_point), dtype=dtype)


@given(pairs())
def test_fake_quantize_is_idempotent(pair: tuple[Tensor, AffineParams]) -> None:
    """fq(fq(x)) = fq(x), bit for bit, where the format of x holds the grid."""
    x, params = pair
    once = fake_quantize(x.float(), params)
    assert same_bits(fake_quantize(once, params), once)


@given(pairs())
def test_fake_quantize_is_dequantize_after_quantize(pair: tuple[Tensor, AffineParams]) -> None:
    """fq(x) = dequantize(quantize(x)), bit for bit."""
    x, params = pair
    assert same_bits(fake_quantize(x, params), dequantize(quantize(x, params), params, x.dtype))


@given(pairs())
def test_round_to_grid_is_fake_quantize(pair: tuple[Tensor, AffineParams]) -> None:
    """A grid given by its parts, as buffers of another format too, gives the same bits."""
    x, params = pair
    parts = (params.scale.double(), params.zero_point.long())
    rounded = round_to_grid(x, *parts, dtype=params.dtype, granularity=params.granularity)
    assert same_bits(rounded, fake_quantize(x, params))


@given(lines())
def test_fake_quantize_is_monotone(pair: tuple[Tensor, AffineParams]) -> None:
    """X <= y implies fq(x) <= fq(y)."""
    values = fake_quantize(*pair)
    assert bool((values[1:] >= values[:-1]).all())


@given(lines())
def test_fake_quantize_gives_few_values(pair: tuple[Tensor, AffineParams]) -> None:
    """A tensor with one grid takes at most 2^bits values."""
    x, params = pair
    assert len(torch.unique(fake_quantize(x, params))) <= 2**params.dtype.bits


@given(matrices.flatmap(params_for), float_dtypes())
def test_fake_quantize_maps_zero_to_positive_zero(params: AffineParams, dtype: torch.dtype) -> None:
    """fq(0) = fq(-0) = +0."""
    zeros = torch.zeros(4, 3, dtype=dtype)
    assert same_bits(fake_quantize(zeros, params), zeros)
    assert same_bits(fake_quantize(-zeros, params), zeros)


@given(pairs())
def test_fake_quantize_errs_by_half_a_step_inside(pair: tuple[Tensor, AffineParams]) -> None:
    """abs(fq(x) - clip(x)) <= scale / 2 * (1 + 2^-20), plus the rounding to the format of x."""
    x, params = pair
    wide = x.double()
    scale, zero_point = (
        broadcast(each.double(), params.granularity, x.shape) for each in (params.scale, params.zero_point)
    )
    low, high = (params.dtype.qmin - zero_point) * scale, (params.dtype.qmax - zero_point) * scale
    clipped = wide.clamp(low, high)
    rounding = torch.finfo(x.dtype).eps * clipped.abs() + torch.finfo(x.dtype).smallest_normal
    bound = scale / 2 * (1 + 2.0**-20) + rounding + clipped.abs() * 2.0**-23
    largest = torch.finfo(x.dtype).max
    errors = (fake_quantize(x, params).double() - clipped.clamp(-largest, largest)).abs()
    assert bool((errors <= bound).all())


@given(lines(), st.integers(-20, 20))
def test_fake_quantize_is_equivariant_under_powers_of_two(
    pair: tuple[Tensor, AffineParams], power: int
) -> None:
    """fq(2^k * x; 2^k * scale) = 2^k * fq(x; scale)."""
    x, params = pair[0].double(), pair[1]
    factor = 2.0**power
    scaled = AffineParams(scale=params.scale * factor, zero_point=params.zero_point, dtype=params.dtype)
    assert same_bits(fake_quantize(x * factor, scaled), fake_quantize(x, params) * factor)


@given(pairs())
def test_codes_are_within_the_format(pair: tuple[Tensor, AffineParams]) -> None:
    """Qmin <= quantize(x) <= qmax."""
    codes = quantize(*pair).to(torch.int64)
    assert pair[1].dtype.qmin <= int(codes.min())
    assert int(codes.max()) <= pair[1].dtype.qmax


@given(st.data(), integer_dtypes())
def test_codes_come_back(data: st.DataObject, dtype: DType) -> None:
    """quantize(dequantize(q)) = q for every code q of up to 16 bits."""
    codes = torch.tensor(data.draw(st.lists(st.integers(dtype.qmin, dtype.qmax), min_size=4, max_size=4)))
    params = data.draw(params_for(torch.zeros(4), dtype))
    assert torch.equal(quantize(dequantize(codes, params), params).to(torch.int64), codes)


@given(st.data(), integer_dtypes(), st.integers(-8, 8), st.sampled_from([torch.float32, torch.bfloat16]))
def test_codes_on_power_of_two_scales_are_exact(
    data: st.DataObject, dtype: DType, power: int, kind: torch.dtype
) -> None:
    """The reciprocal of a power of two is exact, so the code is that of exact arithmetic, halves to even."""
    zero_point = data.draw(st.integers(dtype.qmin, dtype.qmax))
    halves = data.draw(st.lists(st.integers(-200, 200), min_size=6, max_size=6))
    x = (torch.tensor(halves) / 2 * 2.0**power).to(kind)
    codes = quantize(x, one_grid(2.0**power, zero_point, dtype))
    expected = [exact_code(value, 2.0**power, zero_point, dtype) for value in x.tolist()]
    assert codes.tolist() == expected


@given(lines())
def test_codes_are_their_definition(pair: tuple[Tensor, AffineParams]) -> None:
    """Code = clamp(rint(x * (1 / scale)) + zero_point), reciprocal and product each rounded to float32."""
    x, params = pair[0].float(), pair[1]
    zero_point, dtype = int(params.zero_point.item()), params.dtype
    # A float64 quotient or product of float32 numbers, rounded to float32, is the correctly rounded one.
    reciprocal = (1.0 / params.scale.double()).float()
    products = (x.double() * reciprocal.double()).float().tolist()
    bounded = [min(max(each, -1e9), 1e9) for each in products]
    expected = [min(max(round(each) + zero_point, dtype.qmin), dtype.qmax) for each in bounded]
    assert quantize(x, params).tolist() == expected


@given(st.data(), pairs())
def test_fake_quantize_does_not_depend_on_the_layout(
    data: st.DataObject, pair: tuple[Tensor, AffineParams]
) -> None:
    """Strides, offsets and expansion do not matter."""
    x, params = pair
    assert same_bits(fake_quantize(data.draw(layouts(x)), params), fake_quantize(x, params))


@given(st.data(), matrices)
def test_channels_are_quantized_alone(data: st.DataObject, x: Tensor) -> None:
    """A channel's values are those of a tensor that holds it alone."""
    params = data.draw(params_for(x, granularity=PerChannel(1)))
    values = fake_quantize(x, params)
    for channel in range(x.shape[1]):
        alone = AffineParams(
            scale=params.scale[channel], zero_point=params.zero_point[channel], dtype=params.dtype
        )
        assert same_bits(values[:, channel], fake_quantize(x[:, channel], alone))


@given(st.data(), matrices)
def test_groups_are_quantized_alone(data: st.DataObject, x: Tensor) -> None:
    """A group's values are those of a tensor that holds it alone, a shorter last one too."""
    params = data.draw(params_for(x, granularity=PerGroup(0, 3)))
    values = fake_quantize(x, params)
    for group, rows in enumerate((slice(0, 3), slice(3, 4))):
        alone = AffineParams(
            scale=params.scale[group],
            zero_point=params.zero_point[group],
            dtype=params.dtype,
            granularity=PerChannel(1),
        )
        assert same_bits(values[rows], fake_quantize(x[rows], alone))


@given(st.data(), float_dtypes())
def test_finite_values_stay_finite(data: st.DataObject, dtype: torch.dtype) -> None:
    """No grid, however coarse, moves a finite value to infinity."""
    largest = torch.finfo(dtype).max
    x = data.draw(tensors(shape=(6,), dtype=dtype, largest=largest))
    kind = data.draw(integer_dtypes())
    scale = data.draw(st.floats(2.0**-100, 2.0**127, width=32))
    params = one_grid(scale, data.draw(st.integers(kind.qmin, kind.qmax)), kind)
    assert bool(fake_quantize(x, params).isfinite().all())
    assert bool(dequantize(quantize(x, params), params, dtype).isfinite().all())


@given(pairs())
def test_gradient_passes_straight_through(pair: tuple[Tensor, AffineParams]) -> None:
    """The gradient is 1 everywhere, and asking for it changes no bit of the values."""
    x, params = pair
    leaf = x.clone().requires_grad_()
    values = fake_quantize(leaf, params)
    (gradient,) = torch.autograd.grad(values.sum(), leaf)
    assert torch.equal(gradient, torch.ones_like(x))
    assert same_bits(values.detach(), fake_quantize(x, params))


@given(lines(), st.sampled_from([torch.inf, -torch.inf]))
def test_infinity_saturates(pair: tuple[Tensor, AffineParams], infinity: float) -> None:
    """fq(inf) is the largest value of the grid, with or without a gradient."""
    params = pair[1]
    x = torch.tensor(infinity)
    end = params.dtype.qmax if infinity > 0 else params.dtype.qmin
    expected = dequantize(torch.tensor(end), params)
    assert same_bits(fake_quantize(x, params), expected)
    assert same_bits(fake_quantize(x.requires_grad_(), params).detach(), expected)


@st.composite
def edge_cases(draw: st.DrawFn) -> tuple[Tensor, AffineParams]:
    """Draw one grid, and values that are ties, ends, zeros of both signs, infinite, NaN, or any."""
    x = draw(tensors(shape=(8,), largest=2.0**64))
    params = draw(params_for(x, granularity=PerTensor()))
    halves = torch.tensor(draw(st.lists(st.integers(-600, 600), min_size=8, max_size=8))) / 2
    ties = (halves * params.scale).to(x.dtype)
    special = torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=x.dtype)
    return torch.cat([x, ties, special]), params


@given(edge_cases())
def test_one_grid_for_all_is_one_for_the_only_channel(pair: tuple[Tensor, AffineParams]) -> None:
    """The operators in place for one grid give the bits of the definition for many."""
    x, params = pair
    channel = AffineParams(
        scale=params.scale.view(1),
        zero_point=params.zero_point.view(1),
        dtype=params.dtype,
        granularity=PerChannel(0),
    )
    one, many = fake_quantize(x, params), fake_quantize(x[None], channel)[0]
    assert one.isnan().tolist() == many.isnan().tolist() == x.isnan().tolist()
    assert same_bits(one.nan_to_num(0.0), many.nan_to_num(0.0))


@st.composite
def token_formats(draw: st.DrawFn) -> tuple[DType, bool]:
    """Draw a format of codes and whether grids of it are symmetric."""
    dtype = draw(integer_dtypes())
    return dtype, dtype.signed and draw(st.booleans())


@given(matrices, token_formats())
def test_tokens_are_rounded_on_their_own_grids(x: Tensor, form: tuple[DType, bool]) -> None:
    """In one go it is fake-quantizing with the grids of the tokens, bit for bit."""
    dtype, symmetric = form
    expected = fake_quantize(x, params_per_token(x, dtype, symmetric=symmetric))
    assert same_bits(round_tokens(x, dtype, symmetric=symmetric), expected)


@given(matrices, token_formats(), st.sampled_from([torch.nan, torch.inf, -torch.inf]))
def test_a_token_that_is_not_finite_becomes_nan_alone(
    x: Tensor, form: tuple[DType, bool], spoilt: float
) -> None:
    """Every value of the token, and none of another one."""
    dtype, symmetric = form
    expected = round_tokens(x, dtype, symmetric=symmetric)
    x[1, 2] = spoilt
    found = round_tokens(x, dtype, symmetric=symmetric)
    assert found[1].isnan().all()
    assert same_bits(found[[0, 2, 3]], expected[[0, 2, 3]])
