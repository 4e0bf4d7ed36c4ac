"""Asymmetric calibration: what a layer's inputs lost before it is made up for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import gptq_reference as reference
from tico_config import ConfigError, GPTQConfig, NumericsError
from tico_quantizers.algorithms.gptq import quantize_weight, solve
from tico_quantizers.testing import refused
from tiny_models import values


def inputs(rows: int, columns: int, drift: float = 0.1) -> tuple[Tensor, Tensor]:
    """Return the inputs in the float model and those in the quantized model, (rows, columns)."""
    random = torch.Generator().manual_seed(columns)
    mixing = torch.randn(columns, columns, generator=random) / columns**0.5 + torch.eye(columns)
    wanted = torch.randn(rows, columns, generator=random) @ mixing
    return wanted.double(), (wanted + drift * torch.randn(rows, columns, generator=random)).double()


@pytest.mark.parametrize("act_order", [False, True])
@pytest.mark.parametrize(("columns", "group_size"), [(40, None), (200, None), (200, 32), (70, 9)])
def test_it_is_the_algorithm_of_the_paper(columns: int, group_size: int | None, act_order: bool) -> None:
    """Codes are those of least squares column by column, but for values that float32 rounds across a tie."""
    wanted, read = inputs(3 * columns, columns)
    gram, cross_gram, weight = read.T @ read, (wanted - read).T @ read, values(51, 24, columns)
    config = reference.paper(group_size=group_size, act_order=act_order)
    found = solve(weight, gram, config, cross_gram=cross_gram)
    expected = reference.gptq(weight, gram, config, cross_gram=cross_gram)
    # Targets are float32 sums: one code in 10⁵ is so close to a tie that it may flip, see test_gptq_core.
    assert (found.codes == expected.codes).double().mean() >= 0.999
    assert found.loss == pytest.approx(reference.loss(weight, found.dequantize(), gram), rel=1e-5)


def test_inputs_that_did_not_change_change_nothing() -> None:
    """With X = X̃ the result is that of GPTQ, bit for bit."""
    weight, gram = values(52, 8, 90), reference.correlated_gram(90, 300)
    plain = quantize_weight(weight, gram, bits=4, group_size=15)
    same = quantize_weight(weight, gram, bits=4, group_size=15, cross_gram=torch.zeros_like(gram))
    assert torch.equal(plain.codes, same.codes)


def test_outputs_come_nearer_to_those_of_the_float_model() -> None:
    """|X̃ Wᵀ - X Qᵀ| is smaller than with calibration on X alone."""
    wanted, _ = inputs(2000, 64)
    read, weight = wanted + 0.3 * wanted.roll(1, 1), values(53, 32, 64)
    gram, cross_gram = read.T @ read, (wanted - read).T @ read
    config = GPTQConfig(bits=4)
    plain, moved = solve(weight, gram, config), solve(weight, gram, config, cross_gram=cross_gram)
    goal = wanted @ weight.double().T
    errors = [float((goal - read @ each.dequantize().double().T).norm()) for each in (plain, moved)]
    assert errors[1] < errors[0]


def test_matrices_that_do_not_fit_are_refused() -> None:
    """The cross-Gram matrix has the shape of the Gram matrix and finite numbers."""
    weight, gram = values(54, 2, 4), torch.eye(4)
    with refused(None, ConfigError, field="weight"):
        quantize_weight(weight, gram, bits=4, cross_gram=torch.eye(3))
    with refused(None, NumericsError, field="cross_gram", module="gptq"):
        quantize_weight(weight, gram, bits=4, cross_gram=gram * torch.nan)


def test_a_hessian_that_no_damping_helps_is_rounded_to_nearest_here_too() -> None:
    """There is nothing to make up with, so what was lost stays lost."""
    weight, gram = values(55, 5, 2), torch.tensor([[1.0, 1e9], [1e9, 1.0]])
    found = quantize_weight(weight, gram, bits=4, cross_gram=torch.ones(2, 2))
    assert found.rounded_only
    assert torch.equal(found.codes, quantize_weight(weight, torch.eye(2), bits=4).codes)
