"""Gram matrix XᵀX of rows X: the same bits for every thread count and every split of the same rows.

Rows are multiplied in fixed chunks of 512 that carry over batch borders, as float32 products (float64
for float64 rows) summed in float64. A product over at most 512 rows does not depend on the number of
threads, and the chunks do not depend on the batches, so neither does the sum. Only the panels on and
above the diagonal are computed.
"""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import CalibrationError, ConfigError, Found, Problem
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import arithmetic_dtype, require_finite, require_float_tensor

CHUNK_ROWS = 512
_PANELS = 4
_MIRROR_BLOCK = 256


@attrs.frozen(kw_only=True, eq=False)
class GramStatistic(Statistic):
    """Sum of xᵀx over the rows seen, of `columns` values each.

    `upper` holds the finished chunks (float64, only its upper panels are filled), `pending` the rows
    since. The order of the rows matters in the last bits, so `merge` gives the sum up to rounding:
    `ExactGramStatistic` is the one that merges bit for bit.

    >>> GramStatistic(columns=2).observe(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).matrix().tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """

    columns: int
    rows: int = 0
    upper: Tensor | None = None
    pending: tuple[Tensor, ...] = ()

    def __attrs_post_init__(self) -> None:
        """Validate the number of columns."""
        require_columns(self.columns)

    @property
    def is_empty(self) -> bool:
        """Whether no row was seen."""
        return self.rows == 0

    def observe(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Return the statistic with the rows of `x` (..., columns) added, each times its `weights` (rows,).

        A row of weight w enters multiplied by √w, which rounds nothing where w is a power of four.

        Raises:
            CalibrationError: another number of weights than rows, or weights below 0 or not finite.
        """
        with torch.inference_mode(mode=False):
            rows = _weighted(finite_rows(x, self.columns), weights)
            # Rows that only wait leave the sum as it is, so that it can be shared.
            finished = sum(len(part) for part in self.pending) + len(rows) >= CHUNK_ROWS
            return self._with_rows(
                rows, self.upper.clone() if finished and self.upper is not None else self.upper
            )

    def observe_in_place(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Return the same as `observe`, in the memory of this statistic.

        Neither it nor any that it came from must be used again.
        """
        with torch.inference_mode(mode=False):
            return self._with_rows(_weighted(finite_rows(x, self.columns), weights), self.upper)

    def _with_rows(self, new: Tensor, upper: Tensor | None) -> Self:
        waiting = sum(len(part) for part in self.pending)
        missing = CHUNK_ROWS - waiting if waiting else 0
        if waiting and len(new) < missing:
            # A copy, so that what the caller does with its tensor later changes nothing here.
            pending = (*self.pending, new.clone()) if len(new) else self.pending
            return attrs.evolve(self, rows=self.rows + len(new), upper=upper, pending=pending)
        whole = len(new) - (len(new) - missing) % CHUNK_ROWS
        for chunk in self._chunks(new[:whole], missing):
            if upper is None:
                upper = new.new_zeros(self.columns, self.columns, dtype=torch.float64)
            _add_product(upper, chunk)
        left = (new[whole:].clone(),) if len(new) > whole else ()
        return attrs.evolve(self, rows=self.rows + len(new), upper=upper, pending=left)

    def _chunks(self, new: Tensor, missing: int) -> Iterator[Tensor]:
        """Yield the pending rows with the first `missing` of `new`, then the others, in whole chunks."""
        if missing:
            yield torch.cat([*self.pending, new[:missing]])
        for start in range(missing, len(new), CHUNK_ROWS):
            yield new[start : start + CHUNK_ROWS]

    def merge(self, other: Self) -> Self:
        """Return the statistic of the rows of both."""
        require_same("columns", self.columns, other.columns)
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        sums = [part for part in (self.upper, other.upper) if part is not None]
        upper = sums[0] + sums[1] if len(sums) == 2 else sums[0].clone() if sums else None
        waiting = sum(len(part) for part in other.pending)
        both = attrs.evolve(self, rows=self.rows + other.rows - waiting, upper=upper)
        for part in other.pending:
            both = both._with_rows(part, both.upper)
        return both

    def matrix(self) -> Tensor:
        """Return XᵀX, float64, of shape (columns, columns), symmetric bit for bit.

        Raises:
            CalibrationError: no row was seen.
        """
        require_rows(self.rows)
        if self.upper is not None:
            full = self.upper.clone()
        else:
            full = self.pending[0].new_zeros(self.columns, self.columns, dtype=torch.float64)
        if self.pending:
            _add_product(full, torch.cat(self.pending))
        return mirrored(full)


def require_columns(columns: object) -> None:
    """Refuse anything but a positive number of columns.

    Raises:
        ConfigError: naming the field.
    """
    if type(columns) is not int or columns < 1:
        raise ConfigError(Problem(field="columns", value=columns, expected="an integer of at least 1"))


def require_rows(rows: int) -> None:
    """Refuse a statistic that has seen nothing.

    Raises:
        CalibrationError: `rows` is 0.
    """
    if not rows:
        found = Found("none")
        raise CalibrationError(Problem(field="rows", value=found, expected="at least one row of data"))


def finite_rows(x: Tensor, columns: int) -> Tensor:
    """Return `x` (..., columns) as rows, in the dtype to compute in.

    Raises:
        UnsupportedError: `x` is not a dense floating-point tensor.
        CalibrationError: it has another number of columns.
        NumericsError: it holds NaN or infinity.
    """
    require_float_tensor(x, "Gram")
    if not x.ndim or x.shape[-1] != columns:
        found = Found(f"a tensor of shape {tuple(x.shape)}")
        raise CalibrationError(Problem(field="x", value=found, expected=f"rows of {columns} values"))
    rows = x.detach().reshape(-1, columns)
    extremes = torch.aminmax(rows) if len(rows) else None
    if extremes and not bool(extremes.min.isfinite() & extremes.max.isfinite()):
        require_finite(x, "Gram")
    return rows.to(arithmetic_dtype(x))


def _weighted(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return `rows` times the roots of their weights."""
    if weights is None:
        return rows
    counted = weights.detach()
    if counted.shape != rows.shape[:1]:
        found = Found(f"a tensor of shape {tuple(weights.shape)}")
        raise CalibrationError(Problem(field="weights", value=found, expected=f"({len(rows)},), one a row"))
    if not bool((counted.isfinite() & (counted >= 0)).all()):
        found = Found("a value that is none")
        raise CalibrationError(Problem(field="weights", value=found, expected="finite numbers of at least 0"))
    return rows * counted.to(rows.dtype).sqrt()[:, None]


def mirrored(upper: Tensor) -> Tensor:
    """Return the symmetric matrix whose upper triangle is that of `upper`, in its memory."""
    for start in range(0, len(upper), _MIRROR_BLOCK):
        stop = start + _MIRROR_BLOCK
        block = upper[start:stop, start:stop]
        block.copy_(block.triu() + block.triu(1).T)
        upper[stop:, start:stop] = upper[start:stop, stop:].T
    return upper


def _add_product(upper: Tensor, rows: Tensor) -> None:
    step = -(-upper.shape[0] // _PANELS)
    for start in range(0, upper.shape[0], step):
        stop = min(start + step, upper.shape[0])
        upper[start:stop, start:] += rows[:, start:stop].T @ rows[:, start:]
