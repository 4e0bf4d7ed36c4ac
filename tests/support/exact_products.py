"""Exact integer products in the place of an operator that is wrong on some processors.

Without VNNI instructions oneDNN adds pairs of int8 products in 16 bits, where they overflow. The library
notices, warns, and computes otherwise, which `test_an_operator_that_fails_its_test_is_not_used` states. What
is built around the operator is the same on every processor; with this it is tested on every one.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import pytest
from torch import Tensor
from typing_extensions import Self

from tico_modules._kernels import native_operators as operators


@attrs.frozen(eq=False)
class PlainInt8:
    """An int8 weight as it is."""

    weight: Tensor

    @classmethod
    def of(cls, weight: Tensor) -> Self:
        """Keep `weight` (rows, columns)."""
        return cls(weight)


def sum_products(codes: Tensor, zero_point: int, packed: PlainInt8) -> Tensor:
    """Return ``(codes - zero_point) Wᵀ``, exact in float64 and rounded to float32 once."""
    sums: Tensor = (codes.double() - zero_point) @ packed.weight.double().T
    return sums.float()


@contextmanager
def exact_where_wrong() -> Iterator[None]:
    """Put exact products in the place of the operator while the context lasts, where it is wrong."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        works = operators.int8_works()
    with pytest.MonkeyPatch.context() as patch:
        if not works:
            patch.setattr(operators, "PackedInt8", PlainInt8)
            patch.setattr(operators, "sum_int8_products", sum_products)
            operators.int8_works.cache_clear()
        yield
    operators.int8_works.cache_clear()
