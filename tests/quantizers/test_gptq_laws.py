"""Laws of GPTQ that hold for every weight and every Gram matrix."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gptq_reference import loss
from tico_config import DType
from tico_observers.testing import tensors
from tico_quantizers import PackedWeight
from tico_quantizers.algorithms.gptq import Solution, quantize_weight

Problem = tuple[Tensor, Tensor, int, int | None, bool]


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    """Draw a weight, the Gram matrix of some inputs, bits, group size, and whether the grid is symmetric."""
    rows, columns, tokens = draw(st.integers(1, 4)), draw(st.integers(1, 20)), draw(st.integers(1, 8))
    weight = draw(tensors((rows, columns), torch.float32, largest=2.0**20))
    inputs = draw(tensors((tokens, columns), torch.float32, largest=2.0**10)).to(torch.float64)
    size = draw(st.one_of(st.none(), st.integers(1, columns + 2)))
    return weight, inputs.T @ inputs, draw(st.integers(2, 8)), size, draw(st.booleans())


def solved(problem: Problem, *, act_order: bool = False) -> Solution:
    """Return the solution of a problem."""
    weight, gram, bits, size, symmetric = problem
    return quantize_weight(
        weight,
        gram,
        bits=bits,
        group_size=size,
        ragged_groups=True,
        symmetric=symmetric,
        act_order=act_order,
    )


@given(problems(), st.booleans())
def test_a_solution_is_a_packed_weight(problem: Problem, act_order: bool) -> None:
    """pack(codes) stands for the same values, and all of them are finite."""
    found = solved(problem, act_order=act_order)
    packed = PackedWeight.from_codes(
        found.codes,
        found.scale,
        found.zero_point,
        dtype=found.dtype,
        shape=tuple(problem[0].shape),
        group_size=found.group_size,
        group_index=found.group_index,
    )
    assert torch.equal(packed.integer_codes(), found.codes)
    assert torch.equal(packed.dequantize(), found.dequantize())
    assert bool(found.dequantize().isfinite().all())


@given(problems(), st.integers(-10, 10))
def test_the_hessian_counts_up_to_a_power_of_four(problem: Problem, exponent: int) -> None:
    """codes(W, 4ᵏ H) = codes(W, H)."""
    weight, gram, *rest = problem
    scaled = solved((weight, gram * 4.0**exponent, *rest))  # type: ignore[arg-type]
    assert torch.equal(scaled.codes, solved(problem).codes)


@given(problems())
def test_a_diagonal_hessian_rounds_to_nearest(problem: Problem) -> None:
    """GPTQ(W, D) = RTN(W) for D diagonal and positive."""
    weight, gram, bits, size, symmetric = problem
    diagonal = torch.diag(gram.diagonal() + 1)
    nearest = PackedWeight.round_to_nearest(
        weight, DType(bits, symmetric), symmetric=symmetric, group_size=size
    )
    found = quantize_weight(
        weight, diagonal, bits=bits, group_size=size, ragged_groups=True, symmetric=symmetric
    )
    assert torch.equal(found.codes, nearest.integer_codes())


@given(problems())
def test_the_reported_loss_is_that_of_the_result(problem: Problem) -> None:
    """Loss = tr((W - Q) H (W - Q)ᵀ)."""
    weight, gram, *_ = problem
    found = solved(problem)
    wanted = loss(weight, found.dequantize(), gram)
    # The error of each element is a float32 number: wrong by 2⁻²⁴ of it and of the weight at most, which
    # the trace of H bounds the effect of.
    size = float((weight.double().square().sum() + found.dequantize().double().square().sum()) ** 0.5)
    error = float((weight.double() - found.dequantize().double()).square().sum() ** 0.5)
    trace = float(gram.diagonal().sum())
    assert abs(found.loss - wanted) <= 1e-5 * wanted + 2**-20 * trace * size * error + 1e-30
