"""GPTQ on floating-point formats: the laws that it has on grids of integers."""

from __future__ import annotations

import attrs
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from tico_config import (
    FLOAT_FORMATS,
    FP8,
    MXFP4,
    MXFP8,
    NVFP4,
    ConfigError,
    FloatFormat,
    GPTQConfig,
    HessianMSESpec,
    MinMaxSpec,
    MSESpec,
    PercentileSpec,
    from_json,
    to_json,
)
from tico_modules import FloatWeight, PackedWeight
from tico_observers.testing import float_formats, tensors
from tico_quantizers.conversion import solved_weight
from tico_quantizers.solvers import factored, loss_of_nearest, nearest, solve, solve_by
from tiny_models import values

OBSERVERS: tuple[MinMaxSpec | MSESpec | HessianMSESpec, ...] = (MinMaxSpec(), MSESpec(7), HessianMSESpec(10))
weights = tensors(shape=(3, 40), dtype=torch.float32, largest=2.0**20)
every_format = pytest.mark.parametrize("dtype", FLOAT_FORMATS, ids=str)


@st.composite
def configs(draw: st.DrawFn) -> GPTQConfig:
    """Draw a config with a format of floating-point elements."""
    dtype = draw(float_formats())
    blocks = dtype.block_size is not None
    return GPTQConfig(
        dtype=dtype,
        group_size=None if blocks else draw(st.none() | st.integers(8, 40)),
        observer=draw(st.none() | st.sampled_from(OBSERVERS)),
        static_groups=draw(st.booleans()),
        act_order=draw(st.booleans()),
    )


def gram(seed: int, columns: int = 40) -> Tensor:
    """Return XᵀX of inputs that are correlated."""
    x = values(seed, 128, columns) @ values(seed + 1, columns, columns)
    return x.T @ x


def loss_of(weight: Tensor, found: Tensor, hessian: Tensor) -> float:
    """Return tr((W - Q) H (W - Q)ᵀ) in float64."""
    error = (weight - found).double()
    return float(((error @ hessian.double()) * error).sum())


@given(weights, configs())
def test_a_diagonal_hessian_rounds_to_nearest(weight: Tensor, config: GPTQConfig) -> None:
    """Nothing makes up for anything, so that each column is rounded by itself."""
    diagonal = torch.arange(1.0, 41.0)
    if config.act_order and not config.static_groups:
        diagonal = torch.ones(40)  # else groups are no runs of columns
    config = attrs.evolve(config, row_gain=False)
    solved = solve(weight, torch.diag(diagonal), config)
    assert torch.equal(solved.dequantize(), nearest(weight, config, diagonal).dequantize())


@given(weights, configs())
def test_codes_and_scales_are_those_of_the_weight(weight: Tensor, config: GPTQConfig) -> None:
    """What is packed has the values of the solution, bit for bit: every scale can be stored."""
    solved = solve(weight, gram(0), config)
    packed = solved_weight(nn.Linear(40, 3), [solved])
    assert isinstance(packed, FloatWeight)
    assert torch.equal(packed.dequantize(), solved.dequantize())


@given(weights, float_formats(), st.booleans())
def test_rounding_is_that_of_packed_weights(weight: Tensor, dtype: FloatFormat, ordered: bool) -> None:
    """On the scales of the standard, `nearest` is round-to-nearest as everywhere else."""
    config = GPTQConfig(dtype=dtype, observer=MinMaxSpec(), act_order=ordered)
    packed = PackedWeight.round_to_nearest(weight, dtype, symmetric=True, group_size=None)
    assert torch.equal(nearest(weight, config).dequantize(), packed.dequantize())


@given(weights, float_formats())
def test_a_weight_on_the_grid_stays(weight: Tensor, dtype: FloatFormat) -> None:
    """No error, nothing to make up for. Scales of the result's own range are those that it is on."""
    weight = torch.where(weight.abs() < 2.0**-20, 0.0, weight)
    config = GPTQConfig(dtype=dtype, observer=MinMaxSpec())
    once = nearest(weight, config).dequantize()
    if torch.equal(nearest(once, config).dequantize(), once):
        assert torch.equal(solve(once, gram(0), config).dequantize(), once)


@every_format
def test_the_loss_is_that_of_the_solution(dtype: FloatFormat) -> None:
    """It is read off the residuals; and that of rounding is higher, on correlated inputs."""
    weight, hessian, config = values(3, 24, 64), gram(5, 64), GPTQConfig(dtype=dtype)
    solved = solve(weight, hessian, config)
    assert solved.loss == pytest.approx(loss_of(weight, solved.dequantize(), hessian), rel=1e-4)
    plain = PackedWeight.round_to_nearest(weight, dtype, symmetric=True, group_size=None).dequantize()
    assert solved.loss < 0.8 * loss_of(weight, plain, hessian)
    same_grids = loss_of_nearest(weight, hessian, config, solved)
    assert solved.loss < same_grids


@every_format
@pytest.mark.parametrize("static", [True, False])
def test_weights_side_by_side_are_solved_as_alone(dtype: FloatFormat, static: bool) -> None:
    """Each has its own scale of the tensor."""
    config = GPTQConfig(dtype=dtype, static_groups=static, act_order=static)
    several = [values(1, 8, 64), 5 * values(2, 6, 64)]
    factor = factored(gram(5, 64), config)
    for together, weight in zip(solve_by(several, factor, config), several, strict=True):
        [alone] = solve_by([weight], factor, config)
        assert torch.equal(together.dequantize(), alone.dequantize())
        assert torch.equal(together.codes, alone.codes)


@pytest.mark.parametrize("per_tensor", [True, False])
def test_fp8_has_the_grids_of_integers(per_tensor: bool) -> None:
    """One scale for the weight, or for a row, of a percentile as well."""
    config = GPTQConfig(dtype=FP8(), per_tensor=per_tensor, observer=PercentileSpec(1, 99))
    scale = solve(values(3, 24, 64), gram(5, 64), config).scale
    assert len(set(scale.flatten().tolist())) == (1 if per_tensor else 24)


@pytest.mark.parametrize(
    ("fields", "wrong"),
    [
        ({"bits": 8}, "bits"),
        ({"symmetric": True}, "symmetric"),
        ({"group_size": 32}, "group_size"),
        ({"per_tensor": True}, "per_tensor"),
    ],
)
def test_what_the_format_says_is_left_out(fields: dict[str, int], wrong: str) -> None:
    """A second word on the same matter is a contradiction, even if it agrees."""
    with pytest.raises(ConfigError, match="left out") as caught:
        GPTQConfig(dtype=MXFP4(), **fields)  # type: ignore[arg-type]
    assert caught.value.field == wrong


def test_formats_differ_from_layer_to_layer() -> None:
    """By overrides, which also go back to integers; and JSON tells them apart."""
    config = GPTQConfig(
        dtype=MXFP4,
        overrides={"*.down": {"dtype": MXFP8()}, "head": {"dtype": None, "bits": 8, "group_size": 64}},
    )
    assert config.resolve("a.down").spec.number_format == MXFP8()
    assert (config.resolve("head").spec.dtype, config.resolve("head").spec.shared_columns) == (None, 64)
    assert config.resolve("a.up").spec.shared_columns == 32
    assert from_json(to_json(config)) == config
    assert '"dtype"' not in to_json(GPTQConfig())
    assert GPTQConfig(dtype=NVFP4()).weight_format().symmetric
