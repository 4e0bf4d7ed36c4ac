"""The solvers give the same bits on any number of threads, whatever the shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import attrs
import pytest
import torch
from torch import Tensor

import gptq_reference as reference
from tico_config import DType, GPTQConfig, MSESpec
from tico_quantizers.solvers import (
    ConsumerWeight,
    Grid,
    Solution,
    best_alpha,
    best_scale,
    best_shares,
    half_quadratic,
    loss_of_nearest,
    magnitudes,
    nearest,
    output_error,
    row_errors,
    solve,
)
from tico_quantizers.solvers._factor import lower_inverse
from tiny_models import values

CONFIGS = [
    GPTQConfig(),
    reference.paper(group_size=30),
    reference.paper(group_size=100, act_order=True),
    GPTQConfig(group_size=17),
    GPTQConfig(per_tensor=True, observer=MSESpec(9)),
]
SHAPES = [(1, 257), (5, 130), (19, 333), (33, 70), (130, 37), (2501, 45)]


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def same_for_all(compute: Callable[[], list[Tensor]]) -> None:
    """Require the same bits from one thread to four."""
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        found.append(compute())
    first, *others = found
    for other in others:
        assert all(map(torch.equal, first, other))


def parts(solution: Solution) -> list[Tensor]:
    """Return the figures of a solution."""
    return [solution.codes, solution.scale, solution.zero_point, torch.tensor(solution.loss).double()]


def consumer(rows: int, columns: int) -> ConsumerWeight:
    """Return a layer, with what it has read."""
    gram = reference.correlated_gram(columns, 2 * columns).to(torch.float32) / (2 * columns)
    return ConsumerWeight(weight=values(1, rows, columns), channels=torch.arange(columns), gram=gram)


@pytest.mark.parametrize("config", CONFIGS, ids=reference.fields_of)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
@pytest.mark.parametrize("drifts", [False, True])
def test_gptq(rows: int, columns: int, config: GPTQConfig, drifts: bool) -> None:
    """Codes, grids and loss; matrices that are transposes in memory give what others do."""
    weight, gram = values(2, rows, columns), reference.correlated_gram(columns, 2 * columns)
    cross = values(3, columns, columns).double() if drifts else None
    config = attrs.evolve(config, damping=1e-4)
    same_for_all(lambda: parts(solve(weight, gram, config, cross_gram=cross)))
    turned = None if cross is None else cross.T.contiguous().T
    other = solve(weight.T.contiguous().T, gram.T.contiguous().T, config, cross_gram=turned)
    assert all(map(torch.equal, parts(other), parts(solve(weight, gram, config, cross_gram=cross))))


@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_what_gptq_falls_back_to(rows: int, columns: int) -> None:
    """The loss as it is defined, for a Gram matrix of one input, and rounding to nearest with its loss."""
    weight, row = values(4, rows, columns), values(5, 1, columns).double()
    gram, config = reference.correlated_gram(columns, 2 * columns), GPTQConfig(group_size=30)
    same_for_all(
        lambda: [
            *parts(solve(weight, row.T @ row, config)),
            *parts(nearest(weight, config)),
            torch.tensor(loss_of_nearest(weight, gram, config)).double(),
        ]
    )


def test_many_rows_are_searched_as_one() -> None:
    """One grid for more errors than one thread adds up."""
    weight, gram = values(6, 33_001, 3), reference.correlated_gram(3, 20)
    config = GPTQConfig(per_tensor=True, observer=MSESpec(9))
    same_for_all(lambda: parts(solve(weight, gram, config)))


@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (70, 600), (40_001, 3), (40_001, 1)])
def test_output_errors(rows: int, columns: int) -> None:
    """Of each row, and of all of them."""
    layer = consumer(rows, columns)
    same_for_all(
        lambda: [row_errors(layer.weight, layer.gram), output_error(layer.weight, layer.gram).view(1)]
    )


@pytest.mark.parametrize("group_size", [None, 30, 17])
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_awq(rows: int, columns: int, group_size: int | None) -> None:
    """The scale of a layer's channels, and the shares of its groups' ranges."""
    layer, grid = consumer(rows, columns), Grid(dtype=DType.uint(3), symmetric=False, group_size=group_size)
    magnitude = magnitudes([layer], columns)
    same_for_all(
        lambda: [
            best_scale([layer], [grid], magnitude, 5)[1],
            best_shares(layer.weight, layer.gram, grid),
        ]
    )


@pytest.mark.parametrize(("rows", "columns"), [*SHAPES, (40_001, 1)])
def test_smoothquant(rows: int, columns: int) -> None:
    """The scale after which 8 bits change the outputs least."""
    layer, ends = consumer(rows, columns), values(7, columns).abs() * 9
    largest = layer.weight.abs().amax(0)
    same_for_all(lambda: [best_alpha([layer], -ends, ends, largest)[1]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("size", [1, 5, 16, 17, 30, 33, 63, 64])
@pytest.mark.parametrize("unit", [False, True])
def test_triangular_inverses_and_factors(size: int, dtype: torch.dtype, unit: bool) -> None:
    """Of a block, which LAPACK would divide among threads; the inverse is one, whatever stands above."""
    lower = (values(8, size, size) / 16).tril(-1).to(dtype)
    lower += torch.eye(size) if unit else torch.diag(1 + values(9, size).abs())
    above = torch.full_like(lower, torch.nan).triu(1)
    given = torch.where(torch.ones_like(lower).tril().bool(), lower, above)
    square = lower @ lower.T
    same_for_all(lambda: [lower_inverse(given, unit=unit), torch.linalg.cholesky(square)])
    # Backward stable: the residual is at most size * eps times the norms, which are below 4 and 2 here.
    bound = size * 8 * torch.finfo(dtype).eps
    assert (lower_inverse(given, unit=unit) @ lower - torch.eye(size)).abs().max() <= bound


@pytest.mark.parametrize(("rows", "columns"), [(5, 130), (1, 40_001), (2501, 45)])
def test_hqq(rows: int, columns: int) -> None:
    """Scales, zero points and losses, of many groups and of one that is a whole long row."""
    weight, grid = values(10, rows, columns), Grid(dtype=DType.uint(3), symmetric=False, group_size=None)

    def compute() -> list[Tensor]:
        found = half_quadratic(weight, grid, lp_norm=0.7, steps=3)
        return [found.params.scale, found.params.zero_point, found.loss, found.rounded_loss]

    same_for_all(compute)
