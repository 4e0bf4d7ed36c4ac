"""Products and sums whose bits do not depend on the number of threads.

The library that multiplies for PyTorch divides a product among threads, and what lies at the border of a
part is added up in another order. More threads mean other borders. Measured with torch 2.13 and its MKL on
1, 2, 3, 4, 6, 8 and 16 threads:

- Products over more than 512 terms depend on the number of threads on every processor tried.
- On an AMD EPYC (AVX2), float32 products over fewer terms do so too, unless the result has a multiple of 4
  rows *and* a multiple of 16 columns. `tests/observers/test_products.py` watches that rule.
- On the former, float64 products do so where rows and columns are both ragged, where the right operand is a
  transpose, and where the result's rows are not aligned to 64 bytes. The layout of the left operand and
  offsets and strides of the right one do not matter.
- So do float64 triangular systems (`torch.linalg.solve_triangular`) of more than 16 unknowns. Cholesky
  factors of at most 64 columns do not.
- The sum of 32,768 or more numbers to a single one depends on it on both, also where it is written as a sum
  along one dimension. Sums to several numbers, and norms, do not.

So here results have whole tiles of 4 rows and 16 columns, filled up with zeros; at most 512 terms are added
at a time; the right operand is no transpose; and long sums are taken in runs of a fixed length. No setting of
PyTorch is touched.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

__all__ = ["add_product", "product", "total", "whole_columns"]

_TERMS = 512
_ROWS = 4
_COLUMNS = 16
_SUMMED = 2**14


def whole_columns(matrix: Tensor) -> Tensor:
    """Return `matrix` (rows, columns), row by row in memory, with columns of zeros up to a multiple of 16.

    It is `matrix` itself where that is so already.

    >>> whole_columns(torch.ones(2, 17)).shape
    torch.Size([2, 32])
    """
    missing = -matrix.shape[1] % _COLUMNS
    if missing:
        return pad(matrix, (0, missing))
    return matrix if matrix.stride(1) == 1 else matrix.contiguous()


def product(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of `left` (rows, terms) and `right` (terms, columns), contiguous.

    >>> product(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0], [4.0]]))
    tensor([[11.]])
    """
    columns, right = right.shape[1], whole_columns(right)
    result = right.new_zeros(len(left), right.shape[1])
    return add_product(result, left, right)[:, :columns].contiguous()


def add_product(result: Tensor, left: Tensor, right: Tensor, *, alpha: float = 1) -> Tensor:
    """Add `alpha` times the product of `left` and `right` to `result`, and return it.

    `result` and `right` are as `whole_columns` returns them, and the rows of `result` begin at multiples of
    64 bytes, as those of a new tensor do.

    >>> add_product(torch.ones(1, 16), torch.ones(1, 3), torch.ones(3, 16), alpha=2)[0, 0]
    tensor(7.)
    """
    whole = len(result) // _ROWS * _ROWS
    for start in range(0, len(right), _TERMS):
        factor, terms = left[:, start : start + _TERMS], right[start : start + _TERMS]
        if whole:
            result[:whole].addmm_(factor[:whole], terms, alpha=alpha)
        if whole < len(result):
            rest = pad(factor[whole:], (0, 0, 0, whole + _ROWS - len(result)))
            result[whole:].add_((rest @ terms)[: len(result) - whole], alpha=alpha)
    return result


def total(values: Tensor) -> Tensor:
    """Return the sum of all `values`, in float64.

    >>> total(torch.full((300, 300), 0.5)).item()
    45000.0
    """
    flat = values.flatten()
    if len(flat) <= _SUMMED:
        return flat.sum(dtype=torch.float64)
    whole = len(flat) // _SUMMED * _SUMMED
    runs = flat[:whole].view(-1, _SUMMED).sum(1, dtype=torch.float64)
    return total(torch.cat([runs, flat[whole:].sum(dtype=torch.float64).view(1)]))
