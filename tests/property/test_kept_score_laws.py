"""Scores that a softmax can reach are chosen by their bits as by comparisons."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from references import same_bits
from tico_config import DType
from tico_modules import ActivationGrid
from tico_observers import AffineParams
from tico_wrapq.steps import kept_scores, moved_within_reach, with_zeros

REACH = 80.0


@st.composite
def scores(draw: st.DrawFn) -> Tensor:
    """Draw attention scores of any float format, some of them masked, by several numbers."""
    kind = draw(st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]))
    masks = [-torch.inf, torch.finfo(kind).min, -1e4, -80.0, -100.0]
    one = st.one_of(st.floats(-30.0, 30.0), st.sampled_from(masks), st.just(torch.nan))
    return torch.tensor(draw(st.lists(one, min_size=24, max_size=24))).to(kind).view(2, 3, 4)


def out_of_reach(x: Tensor) -> Tensor:
    """Return the definition: far below the largest of the row, or a row of minus infinity alone."""
    limit = x.amax(-1, keepdim=True) - REACH
    return (x < limit) | (limit == -torch.inf)


def by_comparison(x: Tensor, grid: ActivationGrid) -> Tensor:
    """Return the definition."""
    largest, left_out = x.amax(-1, keepdim=True), out_of_reach(x)
    return torch.where(left_out, x, grid(torch.where(left_out, largest, x)))


def both(x: Tensor, grid: ActivationGrid) -> tuple[Tensor, Tensor]:
    """Return what is found and what is defined, with NaN as a number."""
    found, expected = moved_within_reach(x, grid, by_row=grid.scale.numel() == 0), by_comparison(x, grid)
    assert torch.equal(found.isnan(), expected.isnan())
    return found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0)


@given(scores(), st.sampled_from([DType.int(8), DType.uint(8), DType.int(16)]))
def test_on_grids_of_tokens(x: Tensor, dtype: DType) -> None:
    """What is left out stays as it is, and the grid of a row is that of what is kept."""
    assert same_bits(*both(x, ActivationGrid.per_token(dtype, symmetric=dtype.signed)))


@given(scores(), st.sampled_from([0.1, 3.0]))
def test_on_one_grid(x: Tensor, scale: float) -> None:
    """What is left out stays as it is."""
    params = AffineParams(scale=torch.tensor(scale), zero_point=torch.tensor(100), dtype=DType.uint(8))
    assert same_bits(*both(x, ActivationGrid.static(params)))


@given(scores())
def test_what_is_left_out_is_zero_where_ranges_are_read(x: Tensor) -> None:
    """Every other bit stays."""
    left_out = out_of_reach(x)
    kept = kept_scores(x)
    assert (kept is None) == (not left_out.any())
    if kept is not None:
        found, expected = with_zeros(x, kept), x.masked_fill(left_out, 0.0)
        assert same_bits(found.nan_to_num(nan=7.0), expected.nan_to_num(nan=7.0))


def test_gradients_pass_through_what_is_kept_and_what_is_not() -> None:
    """As through any grid."""
    x = torch.tensor([[1.0, 2.0, -500.0]], requires_grad=True)
    grid = ActivationGrid.per_token(DType.int(8), symmetric=True)
    (gradient,) = torch.autograd.grad(moved_within_reach(x, grid, by_row=True).sum(), x)
    assert torch.equal(gradient.sum(), torch.tensor(3.0))
