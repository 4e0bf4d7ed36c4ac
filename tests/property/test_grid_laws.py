"""The grid that a range determines: the smallest one that holds zero and the range."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import DType, NumericsError, PerChannel, PerTensor, PerToken
from tico_observers import (
    AffineParams,
    MinMaxObserver,
    dequantize,
    fake_quantize,
    params_from_range,
    params_per_token,
    quantize,
)
from tico_observers.testing import integer_dtypes, tensors

SMALLEST = torch.finfo(torch.float32).smallest_normal
dtypes = integer_dtypes()
float32_matrices = tensors(shape=(4, 3), dtype=torch.float32)
usual = tensors(shape=(4, 3), dtype=torch.float32, largest=2.0**40)


def grid(x: Tensor, dtype: DType) -> AffineParams:
    """Return the grid of the range of `x`, symmetric for signed codes."""
    low, high = torch.aminmax(x)
    return params_from_range(low, high, dtype, symmetric=dtype.signed, granularity=PerTensor())


@given(float32_matrices, dtypes)
def test_zero_is_always_on_the_grid(x: Tensor, dtype: DType) -> None:
    """dequantize(quantize(0)) = 0."""
    params, zero = grid(x, dtype), torch.zeros(())
    assert dequantize(quantize(zero, params), params).item() == 0.0


@given(float32_matrices, dtypes)
def test_scale_is_a_normal_float(x: Tensor, dtype: DType) -> None:
    """Scales are never zero, subnormal, infinite or NaN."""
    scale = grid(x, dtype).scale.item()
    assert SMALLEST <= scale < float("inf")


@given(float32_matrices, dtypes)
def test_grid_is_the_smallest_that_holds_the_range(x: Tensor, dtype: DType) -> None:
    """Scale = width / steps, computed exactly and rounded once, where that is normal and not zero."""
    low, high = (Fraction(end.item()) for end in (x.min().clamp(max=0), x.max().clamp(min=0)))
    steps = dtype.qmax - dtype.qmin
    exact = max(high / dtype.qmax, low / dtype.qmin) if dtype.signed else (high - low) / steps
    if exact >= SMALLEST:
        assert abs(Fraction(grid(x, dtype).scale.item()) / exact - 1) <= Fraction(1, 2**23)


@given(float32_matrices, dtypes)
def test_ends_of_the_range_err_by_half_a_step(x: Tensor, dtype: DType) -> None:
    """abs(fake_quantize(end) - end) <= scale / 2, up to the rounding of the scale."""
    params = grid(x, dtype)
    ends = torch.stack(torch.aminmax(x))
    errors = (fake_quantize(ends, params).double() - ends.double()).abs()
    bound = params.scale.double() / 2 + ends.abs().double() * 2.0**-23
    assert bool((errors <= bound).all())


@given(float32_matrices, dtypes)
def test_symmetric_grids_have_zero_point_zero(x: Tensor, dtype: DType) -> None:
    """zero_point = 0 for signed codes, whatever the range."""
    if dtype.signed:
        assert grid(x, dtype).zero_point.item() == 0


@given(float32_matrices, dtypes)
def test_zero_point_is_a_code(x: Tensor, dtype: DType) -> None:
    """Qmin <= zero_point <= qmax, also for ranges that are far from zero."""
    assert dtype.qmin <= grid(x, dtype).zero_point.item() <= dtype.qmax


@given(usual, dtypes, st.integers(-20, 20))
def test_grid_is_equivariant_under_powers_of_two(x: Tensor, dtype: DType, power: int) -> None:
    """grid(x * 2^k) has the scale times 2^k and the same zero point, away from the smallest scale."""
    one, other = grid(x, dtype), grid(x * 2.0**power, dtype)
    if x.abs().max() > 2.0**-60:
        assert other.scale.item() == one.scale.item() * 2.0**power
        assert torch.equal(other.zero_point, one.zero_point)


@given(float32_matrices, dtypes)
def test_wider_ranges_have_larger_scales(x: Tensor, dtype: DType) -> None:
    """range(a) within range(b) implies scale(a) <= scale(b), zero ranges excepted."""
    inner = x[:2]
    if bool((inner != 0).any()):
        assert grid(inner, dtype).scale <= grid(x, dtype).scale


@given(usual, dtypes)
def test_channels_have_the_grids_of_their_own_ranges(x: Tensor, dtype: DType) -> None:
    """A channel's scale and zero point are those of a tensor that holds it alone."""
    both = params_from_range(x.amin(0), x.amax(0), dtype, symmetric=dtype.signed, granularity=PerChannel(1))
    for channel in range(3):
        alone = grid(x[:, channel], dtype)
        assert torch.equal(both.scale[channel], alone.scale)
        assert torch.equal(both.zero_point[channel], alone.zero_point)


@given(float32_matrices, dtypes)
def test_tokens_have_the_grids_of_their_own_ranges(x: Tensor, dtype: DType) -> None:
    """A token's scale and zero point are those of a tensor that holds it alone."""
    params = params_per_token(x, dtype, symmetric=dtype.signed)
    assert params.granularity == PerToken()
    for row in range(4):
        alone = grid(x[row], dtype)
        assert torch.equal(params.scale[row], alone.scale)
        assert torch.equal(params.zero_point[row], alone.zero_point)


@given(float32_matrices, dtypes)
def test_observer_gives_the_grid_of_the_range(x: Tensor, dtype: DType) -> None:
    """The collector adds nothing to what the statistic says, but refuses what no network computes."""
    observer = MinMaxObserver("x", dtype)
    observer.collect(x)
    if x.abs().max().item() < 1e30:
        assert observer.params == grid(x, dtype)
    else:
        with pytest.raises(NumericsError):
            _ = observer.params


@given(st.floats(-(2.0**127), 2.0**127, width=32), dtypes)
def test_constant_tensors_come_back(value: float, dtype: DType) -> None:
    """A constant survives its own grid up to the rounding of the scale, where that is normal.

    A subnormal one is 0, as some processors have it anyway.
    """
    x = torch.full((2, 2), value)
    params = grid(x, dtype)
    if abs(value) < SMALLEST:
        assert not fake_quantize(x, params).any()
    elif params.scale.item() > SMALLEST:
        error = (fake_quantize(x, params).double() - x.double()).abs().max().item()
        assert error <= abs(value) * 2.0**-23


@pytest.mark.parametrize("dtype", [DType.uint(8), DType.int(8)])
def test_all_zero_tensors_have_scale_one(dtype: DType) -> None:
    """Nothing determines the scale of zeros, so it is 1, and zero is kept."""
    params = grid(torch.zeros(3), dtype)
    assert params.scale.item() == 1.0
    assert same_bits(fake_quantize(torch.zeros(3), params), torch.zeros(3))


@given(tensors(shape=(4,)), dtypes, st.booleans())
def test_one_range_is_a_channel_alone(x: Tensor, dtype: DType, symmetric: bool) -> None:
    """The grid of one range, computed in Python's floats, is that of a channel, bit for bit."""
    symmetric = symmetric and dtype.signed
    low, high = x.amin(), x.amax()
    one = params_from_range(low, high, dtype, symmetric=symmetric, granularity=PerTensor())
    many = params_from_range(low[None], high[None], dtype, symmetric=symmetric, granularity=PerChannel(0))
    assert same_bits(one.scale, many.scale[0])
    assert same_bits(one.zero_point, many.zero_point[0])
