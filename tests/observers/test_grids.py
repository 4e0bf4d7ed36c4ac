"""Grids, codes and packed bytes: limits, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

import attrs
import pytest
import torch
from torch import Tensor

from references import exact_code, same_bits
from tico_config import (
    INT32,
    ConfigError,
    DType,
    Granularity,
    NumericsError,
    PerChannel,
    PerGroup,
    PerTensor,
    PerToken,
    UnsupportedError,
)
from tico_modules._storage.activation_grid import compute_token_grids
from tico_observers import (
    AffineParams,
    EMAObserver,
    EntropyObserver,
    HistogramObserver,
    MinMaxObserver,
    MSEObserver,
    Observer,
    PercentileObserver,
    Statistic,
    dequantize,
    fake_quantize,
    pack,
    params_from_range,
    params_per_token,
    quantize,
    round_to_grid,
    unpack,
)

FLOATS = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
SMALLEST = torch.finfo(torch.float32).smallest_normal
LARGEST = torch.finfo(torch.float32).max


def grid(scale: float, zero_point: int = 0, dtype: DType | None = None) -> AffineParams:
    """Return the grid of one scale."""
    return AffineParams(
        scale=torch.tensor(scale), zero_point=torch.tensor(zero_point), dtype=dtype or DType.int(8)
    )


def of_range(low: float, high: float, dtype: DType, kind: torch.dtype = torch.float32) -> AffineParams:
    """Return the grid of one range."""
    ends = (torch.tensor(low, dtype=kind), torch.tensor(high, dtype=kind))
    return params_from_range(*ends, dtype, symmetric=dtype.signed, granularity=PerTensor())


@pytest.mark.parametrize("scale", [0.0, -0.1, torch.nan, torch.inf, 1e-39, 1e-45])
def test_scales_that_are_not_positive_normal_floats_are_refused(scale: float) -> None:
    """The error shows what was found."""
    with pytest.raises(NumericsError) as caught:
        grid(scale)
    assert caught.value.field == "scale"


@pytest.mark.parametrize("zero_point", [300, -129, 0.5, torch.nan, torch.inf, 2**40])
def test_zero_points_that_are_not_codes_are_refused(zero_point: float) -> None:
    """Fractions and numbers beyond the format are no codes."""
    with pytest.raises(NumericsError) as caught:
        AffineParams(scale=torch.tensor(1.0), zero_point=torch.tensor(zero_point), dtype=DType.int(8))
    assert caught.value.field == "zero_point"


def test_scales_and_zero_points_go_in_pairs() -> None:
    """Both shapes are in the error."""
    with pytest.raises(NumericsError, match=r"\(3,\).*\(2,\)") as caught:
        AffineParams(scale=torch.ones(3), zero_point=torch.zeros(2, dtype=torch.int32), dtype=DType.int(8))
    assert caught.value.field == "zero_point"


def test_a_grid_keeps_its_own_tensors() -> None:
    """Changing the tensors it was made of does not change it."""
    scale = torch.tensor(1.0)
    params = AffineParams(scale=scale, zero_point=torch.tensor(0), dtype=DType.int(8))
    scale.fill_(2.0)
    assert params.scale.item() == 1.0


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [(PerTensor(), (1,)), (PerChannel(0), (3,)), (PerGroup(-1, 2), (2, 2)), (PerToken(), (3,))],
)
def test_grids_that_do_not_fit_are_refused(granularity: Granularity, shape: tuple[int, ...]) -> None:
    """For every operation, with both shapes."""
    params = AffineParams(
        scale=torch.ones(shape),
        zero_point=torch.zeros(shape, dtype=torch.int32),
        dtype=DType.int(8),
        granularity=granularity,
    )
    for operation, dtype in ((quantize, None), (fake_quantize, None), (dequantize, torch.int8)):
        with pytest.raises(NumericsError, match=r"\(2, 5\)"):
            operation(torch.zeros(2, 5, dtype=dtype), params)


@pytest.mark.parametrize("shape", [(1, 4), (8, 4), (2, 1, 4), (4,)], ids=str)
@pytest.mark.parametrize("axis", [0, -2, 2])
def test_a_grid_per_channel_never_changes_the_shape(axis: int, shape: tuple[int, ...]) -> None:
    """Values of another number of channels are refused by the unchecked operation too, not broadcast."""
    x, scale, zero = torch.zeros(shape), torch.ones(3), torch.zeros(3, dtype=torch.int32)
    with pytest.raises(NumericsError, match=re.escape(str(shape))):
        round_to_grid(x, scale, zero, dtype=DType.int(8), granularity=PerChannel(axis))


@pytest.mark.parametrize("dtype", [DType.uint(8), DType.int(8), DType.int(4), DType.uint(16), DType.int(16)])
@pytest.mark.parametrize("ends", [(-LARGEST, LARGEST), (0.0, LARGEST), (-LARGEST, 0.0), (-3e38, 1.0)])
def test_the_largest_floats_stay_finite(dtype: DType, ends: tuple[float, float]) -> None:
    """Ranges whose width float32 cannot hold have finite scales and finite values."""
    params = of_range(*ends, dtype)
    x = torch.tensor([*ends, 0.0, 1.0])
    values = fake_quantize(x, params)
    assert bool(values.isfinite().all())
    errors = (values.double() - x.double()).abs()
    assert bool((errors <= params.scale.double() / 2 * (1 + 1e-6) + x.abs().double() * 2.0**-23).all())


@pytest.mark.parametrize(
    "ends", [(10.0, 14.5), (-22.0, -15.0), (500.0, 500.0), (-500.0, -500.0), (1e-30, 1e-30)]
)
@pytest.mark.parametrize("dtype", [DType.uint(8), DType.int(8)])
def test_ranges_far_from_zero_include_it(ends: tuple[float, float], dtype: DType) -> None:
    """Zero is exact and everything in the range errs by half a step at most."""
    params = of_range(*ends, dtype)
    x = torch.tensor([*ends, 0.0])
    values = fake_quantize(x, params)
    assert values[2].item() == 0.0
    assert bool(((values - x).abs() <= params.scale * (0.5 + 1e-5)).all())


@pytest.mark.parametrize(("amplitude", "scale"), [(1e-42, 1.0), (1e-45, 1.0), (1.2e-38, SMALLEST)])
def test_ranges_too_small_for_a_grid_become_zero(amplitude: float, scale: float) -> None:
    """A subnormal range is one of zeros, any other has a normal scale, and nothing becomes NaN."""
    params = of_range(-amplitude, amplitude, DType.int(8))
    assert params.scale.item() == scale
    assert bool(fake_quantize(torch.tensor([0.0, amplitude]), params).isfinite().all())


def test_ranges_beyond_float32_are_refused() -> None:
    """A float64 range whose scale no float32 holds is an error, not an infinite scale."""
    with pytest.raises(NumericsError) as caught:
        of_range(-1e300, 1e300, DType.int(8), torch.float64)
    assert caught.value.field == "scale"


@pytest.mark.parametrize("dtype", FLOATS)
def test_every_float_format_is_supported(dtype: torch.dtype) -> None:
    """Values come back in the format they came in; codes do not depend on it where values do not."""
    x = torch.tensor([-1.0, 0.25, 0.5, 3.0], dtype=dtype)
    params = grid(0.25, -3, DType.int(4))
    assert quantize(x, params).tolist() == [-7, -2, -1, 7]
    assert fake_quantize(x, params).dtype == dtype
    assert fake_quantize(x, params).tolist() == [-1.0, 0.25, 0.5, 2.5]


@pytest.mark.parametrize("zero_point", [0, 1])
@pytest.mark.parametrize("power", [-3, 0, 5])
def test_ties_round_to_even(zero_point: int, power: int) -> None:
    """Halves go to the even number of steps, whatever the zero point: 100,000 values against fractions."""
    scale = 2.0**power
    x = torch.arange(-50_000, 50_000) / 2 * scale
    codes = quantize(x, grid(scale, zero_point, DType.int(16)))
    exact = [exact_code(value, scale, zero_point, DType.int(16)) for value in x.tolist()]
    assert codes.tolist() == exact
    assert round(Fraction(5, 2)) == 2


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0)])
@pytest.mark.parametrize("value", [1e20, 3e38, torch.inf])
def test_values_far_outside_saturate_with_their_sign(granularity: Granularity, value: float) -> None:
    """However far: no overflow turns a sign."""
    shape = () if isinstance(granularity, PerTensor) else (2,)
    params = AffineParams(
        scale=torch.full(shape, 1e-6),
        zero_point=torch.zeros(shape, dtype=torch.int32),
        dtype=DType.int(8),
        granularity=granularity,
    )
    x = torch.tensor([[value, -value], [-value, value]])
    assert torch.equal(fake_quantize(x, params).sign(), x.sign())
    assert fake_quantize(x, params).abs().max() <= 128e-6 * (1 + 1e-6)


def test_nan_stays_nan_or_is_refused() -> None:
    """Fake-quantizing keeps NaN visible; codes have no NaN."""
    x = torch.tensor([1.0, torch.nan])
    assert fake_quantize(x, grid(1.0)).isnan().tolist() == [False, True]
    with pytest.raises(NumericsError) as caught:
        quantize(x, grid(1.0))
    assert caught.value.field == "x"


def test_integers_are_not_quantized() -> None:
    """They have codes already, or none."""
    for operation in (quantize, fake_quantize):
        with pytest.raises(UnsupportedError) as caught:
            operation(torch.arange(3), grid(1.0))
        assert caught.value.field == "dtype"


def test_bias_codes_are_exact() -> None:
    """32-bit codes are computed in float64, which holds all of them."""
    x = torch.tensor([2.0**31, -(2.0**31), 16_777_217.0], dtype=torch.float64)
    params = grid(1.0, 0, INT32)
    assert quantize(x, params).tolist() == [2**31 - 1, -(2**31), 16_777_217]
    assert quantize(x.float(), params).tolist() == [2**31 - 1, -(2**31), 16_777_216]
    assert dequantize(torch.tensor([16_777_217]), params, torch.float64).item() == 16_777_217.0


@pytest.mark.parametrize("shape", [(0,), (3, 0), (0, 3)])
def test_empty_tensors_have_empty_results(shape: tuple[int, ...]) -> None:
    """Nothing in, nothing out, of the same shape."""
    x = torch.empty(shape)
    assert fake_quantize(x, grid(1.0)).shape == shape
    assert dequantize(quantize(x, grid(1.0)), grid(1.0)).shape == shape
    if len(shape) > 1:
        assert params_per_token(x, DType.int(8), symmetric=True).scale.shape == shape[:-1]


def test_scalars_are_quantized() -> None:
    """A 0-dimensional tensor is one value."""
    assert fake_quantize(torch.tensor(0.3), grid(0.5)).item() == 0.5


def test_traces_can_hold_a_fake_quantizer() -> None:
    """An exported program needs torch alone, and gives the same bits and the gradient."""
    x = torch.linspace(-9.0, 9.0, 20).view(4, 5)
    channels = AffineParams(
        scale=torch.full((5,), 0.5),
        zero_point=torch.arange(5),
        dtype=DType.int(4),
        granularity=PerChannel(1),
    )
    groups = attrs.evolve(
        channels, scale=torch.ones(4, 3), zero_point=torch.zeros(4, 3), granularity=PerGroup(1, 2)
    )
    for fixed in (grid(0.5, 2, DType.uint(4)), channels, groups):
        leaf = x.clone().requires_grad_()
        program = torch.export.export(_WithGrid(fixed), (leaf,))
        calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
        assert [name for name in calls if not name.startswith("aten.")] == []
        exported = program.module()
        assert same_bits(exported(x), fake_quantize(x, fixed))
        assert torch.equal(torch.autograd.grad(exported(leaf).sum(), leaf)[0], torch.ones_like(x))


class _WithGrid(torch.nn.Module):
    """A module that fake-quantizes its input."""

    def __init__(self, params: AffineParams) -> None:
        super().__init__()
        self.params = params

    def forward(self, x: Tensor) -> Tensor:
        return fake_quantize(x, self.params)


@pytest.mark.parametrize("bits", [0, 1, 17, True, 4.0])
def test_other_widths_are_not_packed(bits: int) -> None:
    """2 to 16 bits, as a whole number."""
    with pytest.raises(ConfigError) as caught:
        pack(torch.zeros(4, dtype=torch.int64), bits)
    assert caught.value.field == "bits"


@pytest.mark.parametrize("code", [-1, 16])
def test_codes_beyond_the_width_are_not_packed(code: int) -> None:
    """They would spill into their neighbours."""
    with pytest.raises(NumericsError) as caught:
        pack(torch.tensor([0, code]), 4)
    assert caught.value.field == "codes"


def test_bytes_of_another_shape_are_not_unpacked() -> None:
    """Both shapes are in the error."""
    with pytest.raises(NumericsError) as caught:
        unpack(torch.zeros(3, dtype=torch.uint8), 4, (4,))
    assert caught.value.field == "packed"


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # torch falls back to a loop, and says so
def test_grids_work_in_functional_transforms() -> None:
    """Mapped over a batch by torch.func, the values are those of the whole batch."""
    params = AffineParams(scale=torch.tensor(0.5), zero_point=torch.tensor(3), dtype=DType.uint(4))
    x = torch.linspace(-3, 8, 12).view(3, 4)
    mapped: Tensor = torch.func.vmap(lambda row: fake_quantize(row, params))(x)
    assert torch.equal(mapped, fake_quantize(x, params))


@pytest.fixture(params=[False, True], ids=["gradual underflow", "flush to zero"])
def flushing(request: pytest.FixtureRequest) -> Iterator[None]:
    """Set the processor's treatment of subnormal numbers, and set it back."""
    if not torch.set_flush_denormal(request.param):
        pytest.skip("this processor has no such mode")
    yield
    torch.set_flush_denormal(False)


# Powers of two, so that the expected scales are exact: subnormal, at the limit, and 2**8 steps above it.
TINY = [
    ((-(2.0**-140), 2.0**-130), (1.0, 0)),
    ((0.0, 2.0**-127), (1.0, 0)),
    ((-(2.0**-126), 0.0), (SMALLEST, 1)),
    ((0.0, 2.0**-120), (SMALLEST, 0)),
    ((-(2.0**-130), 255 * 2.0**-126), (SMALLEST, 0)),
    ((-(2.0**-118), 254 * 2.0**-118), (2.0**-118, 1)),
]


@pytest.mark.usefixtures("flushing")
@pytest.mark.parametrize(("ends", "expected"), TINY, ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.float64], ids=str)
def test_tiny_ranges_have_the_same_grid_in_every_mode(
    ends: tuple[float, float], expected: tuple[float, int], kind: torch.dtype
) -> None:
    """Whether the processor flushes subnormal numbers to zero changes no grid, alone or among others."""
    one = of_range(*ends, DType.uint(8), kind)
    low, high = (torch.tensor([end, end], dtype=kind) for end in ends)
    two = params_from_range(low, high, DType.uint(8), symmetric=False, granularity=PerChannel(0))
    token = params_per_token(torch.stack([low, high], -1), DType.uint(8), symmetric=False)
    assert (one.scale.item(), one.zero_point.item()) == expected
    for params in (two, token):
        assert (params.scale.tolist(), params.zero_point.tolist()) == tuple([each] * 2 for each in expected)


@pytest.mark.parametrize(
    "kind", [MinMaxObserver, EMAObserver, HistogramObserver, PercentileObserver, MSEObserver, EntropyObserver]
)
@pytest.mark.parametrize("power", [-140, -130, -126, -120, -118])
def test_tiny_data_have_the_same_grid_in_every_mode(kind: type[Observer[Statistic]], power: int) -> None:
    """Every observer, and the grids of single tokens as modules compute them."""
    data = torch.tensor([-1.0, 3.0, 100.0]) * 2.0**power
    found = []
    for flushing in (False, True):
        torch.set_flush_denormal(flushing)
        try:
            observer = kind("act_in", DType.uint(8))
            observer.collect(data)
            token = compute_token_grids(data.view(1, 3), DType.uint(8), symmetric=False)
            found.append((*observer.compute_qparams(), *token))
        finally:
            torch.set_flush_denormal(False)
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))
