"""Each row of what GPTQ leaves gives outputs of the size that the float row gives."""

from __future__ import annotations

import attrs
import pytest
import torch
from torch import Tensor

from gptq_reference import correlated_gram, fields_of
from tico_config import FP8, MXFP4, NVFP4, GPTQConfig, HessianMSESpec, SuperBlock
from tico_quantizers.solvers import nearest, solve

CONFIGS = [
    GPTQConfig(bits=2, observer=HessianMSESpec()),
    GPTQConfig(bits=3, group_size=16),
    GPTQConfig(bits=4, group_size=16, symmetric=True, act_order=False),
    GPTQConfig(bits=2, per_tensor=True, observer=HessianMSESpec()),
    GPTQConfig(dtype=FP8("e5m2")),
]


def _weight() -> Tensor:
    return torch.randn(24, 48, generator=torch.Generator().manual_seed(7))


def _projections(weight: Tensor, values: Tensor, gram: Tensor) -> Tensor:
    """Return w H qᵀ / w H wᵀ of each row."""
    outputs = weight.double() @ gram
    found: Tensor = (outputs * values.double()).sum(1) / (outputs * weight.double()).sum(1)
    return found


@pytest.mark.parametrize("config", CONFIGS, ids=fields_of)
def test_outputs_keep_their_projection_on_the_float_ones(config: GPTQConfig) -> None:
    """With one scale for all rows, their sum does."""
    weight, gram = _weight(), correlated_gram(48, 200)
    solved, plain = (solve(weight, gram, each) for each in (config, attrs.evolve(config, row_gain=False)))
    assert torch.equal(solved.codes, plain.codes)
    found = _projections(weight, solved.dequantize(), gram)
    without = _projections(weight, plain.dequantize(), gram)
    if config.per_tensor:
        sizes = (weight.double() @ gram * weight.double()).sum(1)
        found, without = ((each * sizes).sum() / sizes.sum() for each in (found, without))
    # The gain is rounded to a 256th, and is at most 1.5 here. Its products are sums of 48 float32 numbers,
    # each of them right to 2⁻²⁴ of terms that are at most ten times their sum.
    bound = 2.0**-9 + 10 * 50 * 2.0**-24
    assert bool((found - 1).abs().le(bound).all())
    assert bool((without - 1).abs().gt(bound).any())


@pytest.mark.parametrize("config", CONFIGS, ids=fields_of)
def test_loss_is_that_of_the_weight_that_is_left(config: GPTQConfig) -> None:
    """After the gain, not before it."""
    weight, gram = _weight(), correlated_gram(48, 200)
    solved = solve(weight, gram, config)
    error = (weight - solved.dequantize()).double()
    # The gain, the scales and the shares of the rows are of float32 products of 48 terms, whose rounding is
    # 48 · 2⁻²⁴ of terms that are at most ten times their sum here; the loss is of second order in them.
    assert solved.loss == pytest.approx(float((error @ gram * error).sum()), rel=10 * 48 * 2.0**-24)


@pytest.mark.parametrize(
    "config",
    [
        GPTQConfig(bits=4, group_size=16, symmetric=True, super_block=SuperBlock(columns=32)),
        GPTQConfig(dtype=MXFP4()),
        GPTQConfig(dtype=NVFP4()),
    ],
    ids=fields_of,
)
def test_scales_on_grids_of_their_own_stay(config: GPTQConfig) -> None:
    """A factor would take them off."""
    weight, gram = _weight(), correlated_gram(48, 200)
    solved, plain = (solve(weight, gram, each) for each in (config, attrs.evolve(config, row_gain=False)))
    assert torch.equal(solved.scale, plain.scale)


def test_rows_without_outputs_stay() -> None:
    """There is nothing to keep the size of, whether the inputs were always zero or the weights are."""
    weight, gram = _weight(), torch.zeros(48, 48, dtype=torch.float64)
    config = GPTQConfig(bits=3)
    assert torch.equal(
        solve(weight, gram, config).dequantize(), nearest(weight, config, gram.diagonal()).dequantize()
    )
    weight[3] = 0
    solved = solve(weight, correlated_gram(48, 200), config)
    assert bool(solved.scale.isfinite().all())
    assert not bool(solved.dequantize()[3].any())
