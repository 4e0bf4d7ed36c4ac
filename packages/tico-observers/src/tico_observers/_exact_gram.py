"""Gram matrix in integers: the same bits for every order, split and merge of the same rows.

Column c is rounded to multiples of ``2 ** (exponent[c] - 20)``, where ``2 ** exponent[c]`` is the smallest
power of two that is not below the column's largest magnitude. Products of two such integers over 2048
rows stay within 2**53, so float64 products are exact, and int64 holds their sum: nothing else is rounded.
"""

from __future__ import annotations

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import CalibrationError, Found, Problem
from tico_observers._gram import finite_rows, mirrored, require_columns, require_rows
from tico_observers._powers_of_two import floor_log2, power_of_two
from tico_observers._statistic import Statistic, require_same

_FRACTION_BITS = 20
_EXACT_ROWS = 2**11
_MAX_ROWS = 2**22
_PANELS = 4
_SMALLEST_EXPONENT = -400


@attrs.frozen(kw_only=True, eq=False)
class ExactGramStatistic(Statistic):
    """Sum of xᵀx over the rows seen: commutative, exact once x is rounded to 21 bits of its column's maximum.

    `maximum` holds the columns' largest magnitudes, from a first pass with `AbsMaxStatistic`: no later value
    may be above. Statistics merge only where they agree on it.

    >>> from tico_observers import AbsMaxStatistic
    >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    >>> seen = AbsMaxStatistic().observe(x)
    >>> ExactGramStatistic(maximum=seen.maximum()).observe(x).matrix().tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """

    maximum: Tensor
    rows: int = 0
    sums: Tensor | None = None

    def __attrs_post_init__(self) -> None:
        """Validate the maxima."""
        usable = self.maximum.ndim == 1 and bool((self.maximum.isfinite() & (self.maximum >= 0)).all())
        if not usable:
            found = Found(f"a tensor of shape {tuple(self.maximum.shape)}, or a value that is none")
            expected = "the largest magnitude of every column"
            raise CalibrationError(Problem(field="maximum", value=found, expected=expected))
        require_columns(self.columns)

    @property
    def columns(self) -> int:
        """Number of values in a row."""
        return len(self.maximum)

    @property
    def is_empty(self) -> bool:
        """Whether no row was seen."""
        return self.rows == 0

    def observe(self, x: Tensor) -> Self:
        """Return the statistic with the rows of `x` (..., columns) added.

        Raises:
            CalibrationError: a value is above its column's maximum, or 2**22 rows were seen.
        """
        return self._with_rows(x, None if self.sums is None else self.sums.clone())

    def observe_in_place(self, x: Tensor) -> Self:
        """Return the same as `observe`, in the memory of this statistic, which must not be used again."""
        return self._with_rows(x, self.sums)

    def _with_rows(self, x: Tensor, sums: Tensor | None) -> Self:
        with torch.inference_mode(mode=False):
            codes = self._codes(finite_rows(x, self.columns))
            require_room(self.rows + len(codes))
            for start in range(0, len(codes), _EXACT_ROWS):
                if sums is None:
                    sums = torch.zeros(self.columns, self.columns, dtype=torch.int64, device=x.device)
                _add_exact_product(sums, codes[start : start + _EXACT_ROWS])
            return attrs.evolve(self, rows=self.rows + len(codes), sums=sums)

    def _codes(self, rows: Tensor) -> Tensor:
        if len(rows):
            above = rows.abs().amax(0) > self.maximum
            if bool(above.any()):
                column = int(above.nonzero()[0])
                found = Found(f"a larger one in column {column}")
                expected = "values up to the maximum of the first pass"
                raise CalibrationError(Problem(field="x", value=found, expected=expected))
        return torch.round(rows.double() * power_of_two(_FRACTION_BITS - self._exponents()))

    def _exponents(self) -> Tensor:
        floor = floor_log2(self.maximum.double())
        is_power = power_of_two(floor) == self.maximum
        return (floor + (~is_power).to(torch.int64)).clamp(min=_SMALLEST_EXPONENT)

    def merge(self, other: Self) -> Self:
        """Return the statistic of the rows of both."""
        require_same("columns", self.columns, other.columns)
        require_same("maximum", True, torch.equal(self.maximum, other.maximum))
        require_room(self.rows + other.rows)
        if self.sums is None or other.sums is None:
            return other if self.sums is None else self
        return attrs.evolve(self, rows=self.rows + other.rows, sums=self.sums + other.sums)

    def matrix(self) -> Tensor:
        """Return XᵀX, float64, of shape (columns, columns), symmetric bit for bit.

        Raises:
            CalibrationError: no row was seen.
        """
        require_rows(self.rows)
        step = power_of_two(self._exponents() - _FRACTION_BITS)
        sums = torch.zeros(0, 0) if self.sums is None else self.sums
        return mirrored((sums.double() * step[:, None]).mul_(step))


def require_room(rows: int) -> None:
    """Refuse more rows than int64 sums hold.

    Raises:
        CalibrationError: with the number of rows.
    """
    if rows > _MAX_ROWS:
        remedy = "take GramStatistic"
        raise CalibrationError(
            Problem(field="rows", value=rows, expected=f"at most {_MAX_ROWS} rows", remedy=remedy)
        )


def _add_exact_product(sums: Tensor, codes: Tensor) -> None:
    step = -(-sums.shape[0] // _PANELS)
    for start in range(0, sums.shape[0], step):
        stop = min(start + step, sums.shape[0])
        sums[start:stop, start:] += (codes[:, start:stop].T @ codes[:, start:]).to(torch.int64)
