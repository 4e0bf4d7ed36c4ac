"""Products and sums have the same bits on any number of threads, by the rule that `products` states."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import pytest
import torch
from torch import Tensor

from tico_observers.products import add_product, product, total, whole_columns

FORMATS = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _threads_restored() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def varied(compute: Callable[[], Tensor]) -> bool:
    """Tell whether the bits depend on the number of threads."""
    found = []
    for count in (1, 2, 3, 4):
        torch.set_num_threads(count)
        found.append(compute())
    return not all(torch.equal(found[0], other) for other in found[1:])


def numbers(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return normally distributed numbers with all digits of the format."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def integers(*shape: int) -> Tensor:
    """Return small integers, whose products and sums are exact in float32."""
    return torch.randint(-8, 9, shape, generator=torch.Generator().manual_seed(sum(shape))).float()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("terms", [1, 16, 130, 512])
def test_products_of_whole_tiles_do_not_depend_on_threads(terms: int, dtype: torch.dtype) -> None:
    """What all else stands on: rows by 4, columns by 16, at most 512 terms, a left operand of any layout."""
    shapes = [
        (rows, columns) for rows in (4, 8, 12, 20, 64, 200, 516) for columns in (16, 48, 272, 1040, 2512)
    ]
    for rows, columns in shapes:
        left, right = numbers(rows, terms, dtype=dtype), numbers(terms, columns, dtype=dtype)
        result, turned = numbers(rows, columns, dtype=dtype), left.T.contiguous().T
        assert not varied(partial(torch.addmm, result, left, right)), (rows, columns)
        assert not varied(partial(torch.addmm, result, turned, right)), (rows, columns)


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("terms", [3, 300, 1100])
def test_products_of_any_shape_do_not_depend_on_threads(terms: int, dtype: torch.dtype) -> None:
    """Ragged rows and columns are filled up, long sums cut, and transposes copied."""
    for rows in (1, 2, 5, 19, 130):
        for columns in (1, 17, 80, 257, 1100):
            left, right = numbers(rows, terms, dtype=dtype), numbers(terms, columns, dtype=dtype)
            turned = right.T.contiguous().T
            assert not varied(partial(product, left, right)), (rows, columns)
            assert torch.equal(product(left, right), product(left, turned))


@pytest.mark.parametrize(("rows", "terms", "columns"), [(1, 1, 1), (3, 600, 5), (9, 30, 16), (64, 1025, 33)])
def test_a_product_is_the_product(rows: int, terms: int, columns: int) -> None:
    """In integers, which no order of sums changes."""
    left, right = integers(rows, terms), integers(terms, columns)
    assert torch.equal(product(left, right), left @ right)
    assert product(left, right).is_contiguous()


@pytest.mark.parametrize("rows", [1, 3, 4, 11])
def test_products_are_added_with_their_factor(rows: int) -> None:
    """`result` itself takes them, whole tiles and the rows that are left over."""
    left, right, result = integers(rows, 700), integers(700, 32), integers(rows, 32)
    expected = result - 2 * (left @ right)
    assert add_product(result, left, right, alpha=-2) is result
    assert torch.equal(result, expected)


def test_columns_are_filled_with_zeros() -> None:
    """Where there is something to fill; else nothing is copied."""
    matrix = integers(3, 32)
    assert whole_columns(matrix) is matrix
    filled = whole_columns(matrix[:, :19])
    assert torch.equal(filled[:, :19], matrix[:, :19])
    assert filled.shape == matrix.shape
    assert not filled[:, 19:].any()


@pytest.mark.parametrize("dtype", FORMATS)
@pytest.mark.parametrize("shape", [(40_001,), (1, 100_003), (100_003, 1), (300, 301)])
def test_sums_do_not_depend_on_threads(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Also where only one of the dimensions is longer than 1."""
    values = numbers(*shape, dtype=dtype)
    assert not varied(partial(total, values))


@pytest.mark.parametrize("count", [0, 1, 2**14, 2**14 + 1, 2**15, 100_003])
def test_a_sum_is_the_sum(count: int) -> None:
    """In float64, of runs of any number."""
    assert total(torch.arange(count, dtype=torch.int32).double()).item() == count * (count - 1) // 2
