"""Laws of the grids that half-quadratic steps find."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tico_config import DType
from tico_observers import broadcast, dequantize, quantize
from tico_quantizers.solvers import Grid, LpGrid, half_quadratic
from tiny_models import values

NORMS = (0.3, 0.7, 1.0)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Grid, float]:
    """Draw a weight with some values that stand out, its grids, and p."""
    rows, columns = draw(st.integers(1, 5)), draw(st.integers(1, 40))
    weight = values(draw(st.integers(0, 2**16)), rows, columns) * draw(st.sampled_from([1e-3, 1.0, 30.0]))
    weight[draw(st.integers(0, rows - 1)), draw(st.integers(0, columns - 1))] *= draw(st.integers(0, 9))
    symmetric = draw(st.booleans())
    dtype = DType(draw(st.integers(2, 8)), signed=symmetric)
    size = draw(st.sampled_from([None, 1, 7, 8]))
    return (
        weight,
        Grid(dtype=dtype, symmetric=symmetric, group_size=size),
        draw(st.sampled_from(NORMS)),
    )


def solved(weight: Tensor, grid: Grid, lp_norm: float) -> LpGrid:
    """Return the grids after 20 steps."""
    return half_quadratic(weight, grid, lp_norm=lp_norm, steps=20)


def losses(weight: Tensor, found: LpGrid, grid: Grid, lp_norm: float) -> list[list[float]]:
    """Return the Lp losses (rows, groups) by their definition, of the weights that come back from codes."""
    unit = broadcast(grid.params(weight).scale, found.params.granularity, weight.shape)
    back = dequantize(quantize(weight, found.params), found.params)
    rows, size = ((weight - back).abs() / unit).tolist(), grid.width(weight)
    return [
        [sum(e**lp_norm for e in row[start : start + size]) for start in range(0, len(row), size)]
        for row in rows
    ]


@given(problems())
def test_no_group_does_worse_than_rounding_to_nearest(problem: tuple[Tensor, Grid, float]) -> None:
    """By the Lp norm; and the losses told are those of what is stored, up to the rounding of their errors.

    An error is computed to 2**-24 of the largest value, at most 255 steps, and eˣ moves by at most the x-th
    power of what e moves by: 3e-5 ** 0.3 = 0.05 for each weight where p is 0.3 and the error is 0.
    """
    weight, grid, lp_norm = problem
    found = solved(*problem)
    assert bool((found.loss <= found.rounded_loss).all())
    slack = min(grid.width(weight), weight.shape[1]) * (255 * 2.0**-23) ** lp_norm
    expected = torch.tensor(losses(weight, found, grid, lp_norm), dtype=torch.float64)
    assert bool(((found.loss - expected).abs() <= slack + 1e-5 * expected).all())


@given(problems())
def test_no_weight_is_off_by_more_than_half_a_step(problem: tuple[Tensor, Grid, float]) -> None:
    """No range is cut off further than rounding does; float32 errs by 2⁻²⁴ of at most 255 steps."""
    weight, found = problem[0], solved(*problem)
    step = broadcast(found.params.scale, found.params.granularity, weight.shape)
    error = (dequantize(quantize(weight, found.params), found.params) - weight).abs()
    assert bool((error <= step * (0.5 + 255 * 2.0**-22)).all())


@given(problems())
def test_without_steps_it_is_rounding_to_nearest(problem: tuple[Tensor, Grid, float]) -> None:
    """The grids are those that span the weights."""
    weight, grid, lp_norm = problem
    found = half_quadratic(weight, grid, lp_norm=lp_norm, steps=0)
    assert found.params == grid.params(weight)
    assert torch.equal(found.loss, found.rounded_loss)


@given(problems(), st.integers(-20, 20))
def test_powers_of_two_move_the_scales_alone(problem: tuple[Tensor, Grid, float], exponent: int) -> None:
    """A weight times 2ᵏ has the same codes on grids of scales times 2ᵏ, bit for bit."""
    weight, grid, lp_norm = problem
    one, other = solved(*problem), solved(weight * 2.0**exponent, grid, lp_norm)
    alive = one.params.scale != 1.0  # the scale of a group of zeros is 1
    assert torch.equal(other.params.scale, torch.where(alive, one.params.scale * 2.0**exponent, 1.0))
    assert torch.equal(other.params.zero_point, one.params.zero_point)
    assert torch.equal(quantize(weight * 2.0**exponent, other.params), quantize(weight, one.params))


@given(problems())
def test_weights_on_their_grids_keep_them(problem: tuple[Tensor, Grid, float]) -> None:
    """What rounding does not move is not moved by another grid."""
    weight, grid, lp_norm = problem
    params = grid.params(weight)
    on_grid = dequantize(quantize(weight, params), params)
    if grid.params(on_grid) == params:
        assert solved(on_grid, grid, lp_norm).params == params
