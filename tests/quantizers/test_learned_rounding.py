"""Learned rounding of a weight: it starts at its codes, moves by its definition, and is what is packed."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from torch import Tensor

from tico_config import FLOAT_FORMATS, FP8, MXFP4, NVFP4, DType, Element, FloatFormat
from tico_modules import FloatWeight, PackedWeight
from tico_quantizers.testing import values
from tico_quantizers.tuning import LearnedRounding

FORMATS = [
    pytest.param(bits, symmetric, size, id=f"{bits} bits, {symmetric=}, {size=}")
    for bits in (2, 3, 8)
    for symmetric in (False, True)
    for size in (None, 8, 5)
]


def start_of(weight: Tensor, bits: int, symmetric: bool, size: int | None) -> PackedWeight:
    """Return `weight` on a grid, some of its codes one off, as GPTQ leaves them."""
    dtype = DType(bits, signed=symmetric)
    nearest = PackedWeight.round_to_nearest(weight, dtype, symmetric=symmetric, group_size=size)
    moved = nearest.integer_codes() + torch.randint(-1, 2, weight.shape, generator=torch.Generator())
    return PackedWeight.from_codes(
        moved.clamp(dtype.qmin, dtype.qmax),
        nearest.scale,
        nearest.zero_point,
        dtype=dtype,
        shape=tuple(weight.shape),
        group_size=size,
    )


def moved(rounding: LearnedRounding) -> LearnedRounding:
    """Return it after a step that has moved everything."""
    with torch.no_grad():
        rounding.offsets.copy_(values(1, *rounding.offsets.shape))
        rounding.stretches.copy_(values(2, *rounding.stretches.shape))
    return rounding


@pytest.mark.parametrize(("bits", "symmetric", "size"), FORMATS)
def test_a_weight_that_was_not_moved_is_its_start(bits: int, symmetric: bool, size: int | None) -> None:
    """Codes, scales and values are those of the start, bit for bit, also where codes are not the nearest."""
    weight = values(0, 6, 16) * 3
    start = start_of(weight, bits, symmetric, size)
    rounding = LearnedRounding.of(weight, start)
    found = rounding.packed()
    assert torch.equal(found.codes, start.codes)
    assert torch.equal(found.scale, start.scale)
    assert torch.equal(rounding.weight(), start.dequantize())


@pytest.mark.parametrize(("bits", "symmetric", "size"), FORMATS)
def test_a_moved_weight_is_what_is_packed(bits: int, symmetric: bool, size: int | None) -> None:
    """What steps compute with is what the integer layer will, bit for bit."""
    weight = values(0, 6, 16) * 3
    start = start_of(weight, bits, symmetric, size)
    rounding = moved(LearnedRounding.of(weight, start))
    assert torch.equal(rounding.weight(), rounding.packed().dequantize())
    assert not torch.equal(rounding.weight(), start.dequantize())


@pytest.mark.parametrize(("bits", "symmetric", "size"), FORMATS)
def test_codes_are_their_definition(bits: int, symmetric: bool, size: int | None) -> None:
    """Each is round(p + V) + z within its range, in exact arithmetic on the numbers that are stored."""
    weight = values(0, 6, 16) * 3
    start = start_of(weight, bits, symmetric, size)
    rounding = moved(LearnedRounding.of(weight, start))
    dtype, codes, offsets = start.dtype, rounding.packed().integer_codes(), rounding.offsets.detach()
    zeros = start.spread_groups(start.zero_point).expand(6, 16)
    for row, column in ((row, column) for row in range(6) for column in range(16)):
        point = Fraction(float(rounding.points[row, column]))
        offset = Fraction(float(offsets[row, column].clamp(-0.5, 0.5)))
        # The sum of float32 differs from the exact one by less than what a code is away from a tie here.
        expected = min(max(round(point + offset) + int(zeros[row, column]), dtype.qmin), dtype.qmax)
        assert int(codes[row, column]) == expected


def test_a_code_moves_by_one_step_at_most() -> None:
    """Offsets of any size count as 1/2, and no weight starts further than that from its code."""
    weight = values(0, 6, 16)
    start = start_of(weight, 4, False, 8)
    rounding = LearnedRounding.of(weight, start)
    with torch.no_grad():
        rounding.offsets.fill_(100.0)
    change = rounding.packed().integer_codes() - start.integer_codes()
    assert set(change.flatten().tolist()) <= {0, 1}


def test_derivatives_go_straight_through_rounding() -> None:
    """By an offset it is the scale, or 0 for a code pushed out of its range; by t it is (q - z) s."""
    weight = torch.tensor([[0.0, 0.9, 2.2, 3.0]])
    start = PackedWeight.round_to_nearest(weight, DType.uint(2), symmetric=False, group_size=None)
    rounding = LearnedRounding.of(weight, start)
    with torch.no_grad():
        rounding.offsets.copy_(torch.tensor([[-0.5, 0.1, 0.1, 0.5]]))
        rounding.points.copy_(torch.tensor([[-0.25, 0.9, 2.2, 3.25]]))
    slopes = torch.autograd.grad(rounding.weight().sum(), [rounding.offsets, rounding.stretches])
    assert slopes[0].tolist() == [[0.0, 1.0, 1.0, 0.0]]
    assert slopes[1].tolist() == [[pytest.approx(0.1 * (0 + 1 + 2 + 3), rel=1e-6)]]


def test_a_weight_beyond_its_grid_is_finite() -> None:
    """Scales stay normal numbers and values finite, however far steps go."""
    weight = values(0, 2, 4)
    for far in (-1e4, 1e4):
        rounding = LearnedRounding.of(weight, start_of(weight, 4, False, None))
        with torch.no_grad():
            rounding.stretches.fill_(far)
        assert bool(torch.isfinite(rounding.weight()).all())
        assert float(rounding.packed().scale.min()) >= torch.finfo(torch.float32).tiny


def element_start(weight: Tensor, dtype: FloatFormat) -> FloatWeight:
    """Return `weight` on the grid of a floating-point format, some of its elements one off."""
    nearest = PackedWeight.round_to_nearest(weight, dtype, symmetric=True, group_size=None)
    assert isinstance(nearest, FloatWeight)
    known = sorted({each for each in dtype.encoding.values if abs(each) <= dtype.encoding.largest})
    off = torch.randint(-1, 2, weight.shape, generator=torch.Generator()).flatten().tolist()
    codes = nearest.integer_codes().flatten().tolist()
    moved = [
        dtype.encoding.code_of(
            known[min(max(known.index(dtype.encoding.value_of(code)) + by, 0), len(known) - 1)]
        )
        for code, by in zip(codes, off, strict=True)
    ]
    found = PackedWeight.from_codes(
        torch.tensor(moved).view(weight.shape),
        nearest.scale,
        nearest.zero_point,
        dtype=dtype,
        shape=tuple(weight.shape),
        group_size=nearest.group_size,
        tensor_scale=nearest.tensor_scale,
    )
    assert isinstance(found, FloatWeight)
    return found


every_format = pytest.mark.parametrize("dtype", FLOAT_FORMATS, ids=str)


@every_format
def test_elements_that_were_not_moved_are_their_start(dtype: FloatFormat) -> None:
    """Codes, scales and values are those of the start, bit for bit, also of elements not the nearest."""
    weight = values(0, 6, 64) * 3
    start = element_start(weight, dtype)
    rounding = LearnedRounding.of(weight, start)
    found = rounding.packed()
    assert torch.equal(found.codes, start.codes)
    assert torch.equal(found.scale, start.scale)
    assert torch.equal(rounding.weight(), start.dequantize())


@every_format
def test_moved_elements_are_what_is_packed(dtype: FloatFormat) -> None:
    """Each is nearest to p + V d, and its code is packed; scales of blocks stay, those of FP8 move."""
    weight = values(0, 6, 64) * 3
    start = element_start(weight, dtype)
    rounding = moved(LearnedRounding.of(weight, start))
    found = rounding.packed()
    assert torch.equal(rounding.weight(), found.dequantize())
    assert torch.equal(found.scale, start.scale) is (dtype.scale_format != "float32")
    offsets = rounding.offsets.detach().clamp(-0.5, 0.5).flatten().tolist()
    points, before, after = (
        each.flatten().tolist() for each in (rounding.points, start.integer_codes(), found.integer_codes())
    )
    for point, offset, old, new in zip(points, offsets, before, after, strict=True):
        distance = step_from(dtype.encoding, dtype.encoding.value_of(old), 1 if offset >= 0 else -1)
        # The products of float32 are nearer to the exact ones than to a tie here.
        assert new == dtype.encoding.code_of(point + offset * distance)


def step_from(element: Element, value: float, side: int) -> float:
    """Return how far the next element on one side is, beyond the largest as far as the one before."""
    known = sorted({each for each in element.values if abs(each) <= element.largest})
    place = known.index(value)
    lower = min(max(place if side > 0 else place - 1, 0), len(known) - 2)
    return known[lower + 1] - known[lower]


@pytest.mark.parametrize("dtype", [MXFP4(), NVFP4()])
def test_derivatives_of_elements_are_their_steps(dtype: FloatFormat) -> None:
    """By an offset it is the scale times the distance on its side; scales of blocks have none."""
    start = PackedWeight.round_to_nearest(
        torch.tensor([[2.0, 2.0, 6.0, 0.0]]), dtype, symmetric=True, group_size=None
    )
    rounding = LearnedRounding.of(torch.tensor([[2.0, 2.0, 6.0, 0.0]]), start)
    with torch.no_grad():
        rounding.offsets.copy_(torch.tensor([[-0.1, 0.1, 0.1, 0.1]]))
    slopes = torch.autograd.grad(
        rounding.weight().sum(), [rounding.offsets, rounding.stretches], allow_unused=True
    )
    scale = float(start.scale[0, 0])
    assert slopes[0].tolist() == [[0.5 * scale, scale, 2 * scale, 0.5 * scale]]
    assert slopes[1] is None


def test_scales_of_fp8_have_derivatives() -> None:
    """By t it is e s, as for integers."""
    weight = torch.tensor([[448.0, 2.0]])
    start = PackedWeight.round_to_nearest(weight, FP8(), symmetric=True, group_size=None)
    rounding = LearnedRounding.of(weight, start)
    (slope,) = torch.autograd.grad(rounding.weight().sum(), [rounding.stretches])
    assert slope.tolist() == [[pytest.approx(45.0)]]
