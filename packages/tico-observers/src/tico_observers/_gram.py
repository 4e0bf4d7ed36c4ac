"""Gram matrix XᵀX of rows X: the same bits for every thread count and every split of the same rows.

Rows are multiplied in fixed chunks of 1024 that carry over batch borders: the sum of two float32 products
over 512 rows each (float64 for float64 rows), added up in float64. Such a product does not depend on the
number of threads (see `products`), and the chunks do not depend on the batches, so neither does the sum. Only
the panels on and above the diagonal are computed. Columns times powers of two give the same bits times these.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import attrs
import torch
from torch import Tensor
from typing_extensions import Self

from tico_config import CalibrationError, ConfigError, Found, Problem
from tico_observers._powers_of_two import floor_log2, power_of_two
from tico_observers._statistic import Statistic, require_same
from tico_observers._tensor_checks import arithmetic_dtype, require_finite, require_float_tensor
from tico_observers.products import add_product, whole_columns

CHUNK_ROWS = 1024
_PRODUCT_ROWS = 512
_PANEL = 128
_MIRROR_BLOCK = 256
_NEAR = 40  # float32 holds products of 2⁻⁴⁰ and sums of those of 2⁴⁰ with all their digits


@attrs.frozen(kw_only=True, eq=False)
class GramStatistic(Statistic):
    """Sum of xᵀx over the rows seen, of `columns` values each.

    `upper` holds the finished chunks, in panels of 128 rows (float64, each from its diagonal on), `pending`
    the rows since. The order of the rows matters in the last bits, so `merge` gives the sum up to rounding:
    `ExactGramStatistic` is the one that merges bit for bit.

    >>> GramStatistic(columns=2).observe(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).matrix().tolist()
    [[10.0, 14.0], [14.0, 20.0]]
    """

    columns: int
    rows: int = 0
    upper: tuple[Tensor, ...] = ()
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
            return self._with_rows(rows, in_place=False)

    def observe_in_place(self, x: Tensor, weights: Tensor | None = None) -> Self:
        """Return the same as `observe`, in the memory of this statistic and that of `x`.

        Neither it nor any that it came from must be used again, and nothing must write to `x`.
        """
        with torch.inference_mode(mode=False):
            rows = _weighted(finite_rows(x, self.columns), weights)
            return self._with_rows(rows, in_place=True)

    @property
    def _waiting(self) -> int:
        return sum(part.shape[0] for part in self.pending)

    def _with_rows(self, new: Tensor, *, in_place: bool) -> Self:
        # Products of other layouts may have other last bits.
        new, waiting = new.contiguous(), self._waiting
        whole = (waiting + len(new)) // CHUNK_ROWS * CHUNK_ROWS
        used = max(whole - waiting, 0)
        upper = self._with_chunks((*self.pending, new[:used]) if whole else (), in_place=in_place)
        left = new[used:]
        # What the caller does with its tensor later must change nothing here, and few rows not keep it alive.
        kept = left if in_place and 2 * len(left) >= len(new) else left.clone()
        pending = (*(() if whole else self.pending), *((kept,) if len(kept) else ()))
        return attrs.evolve(self, rows=self.rows + len(new), upper=upper, pending=pending)

    def _with_chunks(self, rows: Iterable[Tensor], *, in_place: bool) -> tuple[Tensor, ...]:
        """Return the panels with the products of `rows` added."""
        upper = self.upper
        for chunk in _chunks(rows):
            products = _products(chunk, self.columns, self._panels())
            if not upper:
                upper = tuple(product.to(torch.float64) for product in products)
            elif in_place:
                for panel, product in zip(upper, products, strict=True):
                    panel.add_(product)
            else:
                upper = tuple(panel + product for panel, product in zip(upper, products, strict=True))
            in_place = True  # these are new
        return upper

    def _panels(self) -> Iterable[tuple[int, int]]:
        """Return the rows of the panels that are computed, each from its first row to behind its last."""
        return panels_in(self.columns)

    def merge(self, other: Self) -> Self:
        """Return the statistic of the rows of both."""
        require_same("columns", self.columns, other.columns)
        if self.is_empty or other.is_empty:
            return other if self.is_empty else self
        upper = self.upper or other.upper
        if self.upper and other.upper:
            upper = tuple(own + added for own, added in zip(self.upper, other.upper, strict=True))
        rows = self.rows + other.rows - other._waiting
        both = attrs.evolve(self, rows=rows, upper=upper)
        for part in other.pending:
            both = both._with_rows(part, in_place=False)
        return both

    def matrix(self) -> Tensor:
        """Return XᵀX, float64, of shape (columns, columns), symmetric bit for bit.

        Raises:
            CalibrationError: no row was seen.
        """
        require_rows(self.rows)
        return mirrored(square_of(self._with_chunks(self.pending, in_place=False)))


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
    if len(rows) and not all(math.isfinite(end.item()) for end in torch.aminmax(rows)):
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


def _chunks(parts: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the rows of `parts` in chunks, each a list of what one product takes, in one dtype."""
    chunk: list[Tensor] = []
    for piece in _pieces(parts):
        chunk.append(piece)
        if len(chunk) * _PRODUCT_ROWS == CHUNK_ROWS:
            yield _alike(chunk)
            chunk = []
    if chunk:
        yield _alike(chunk)


def _pieces(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the rows of `parts`, as many as one product takes at a time; copied only where parts meet."""
    held: list[Tensor] = []
    for part in parts:
        start = 0
        while start < len(part):
            stop = start + _PRODUCT_ROWS - sum(rows.shape[0] for rows in held)
            held.append(part[start:stop])
            start = stop
            if start <= len(part):
                yield held[0] if len(held) == 1 else torch.cat(held)
                held = []
    if held:
        yield held[0] if len(held) == 1 else torch.cat(held)


def _alike(chunk: list[Tensor]) -> list[Tensor]:
    wide = any(piece.dtype == torch.float64 for piece in chunk)
    return [piece.to(torch.float64) for piece in chunk] if wide else chunk


def panels_in(size: int) -> Iterator[tuple[int, int]]:
    """Yield the rows of all panels of a matrix, each from its first row to behind its last."""
    return ((start, min(start + _PANEL, size)) for start in range(0, size, _PANEL))


def square_of(panels: tuple[Tensor, ...]) -> Tensor:
    """Return the square matrix that has `panels` on and above its diagonal, and zeros below them."""
    columns = panels[0].shape[1]
    square = panels[0].new_zeros(columns, columns)
    for panel, (start, stop) in zip(panels, panels_in(columns), strict=True):
        square[start:stop, start:] = panel
    return square


def panels_of(square: Tensor) -> tuple[Tensor, ...]:
    """Return copies of the panels on and above the diagonal."""
    return tuple(square[start:stop, start:].clone() for start, stop in panels_in(len(square)))


def _products(chunk: list[Tensor], columns: int, panels: Iterable[tuple[int, int]]) -> Iterator[Tensor]:
    """Yield some panels of the sum of the products of all pieces of a chunk."""
    units = _units(chunk)
    if units is not None:
        chunk = [(piece.double() / units).to(piece.dtype) for piece in chunk]
    pieces = [whole_columns(piece) for piece in chunk]
    for start, stop in panels:
        panel = pieces[0].new_zeros(stop - start, pieces[0].shape[1] - start)
        for rows in pieces:
            add_product(panel, rows[:, start:stop].T, rows[:, start:])
        panel = panel[:, : columns - start].contiguous()
        yield panel if units is None else panel.double() * units[start:stop, None] * units[start:]


def _units(chunk: list[Tensor]) -> Tensor | None:
    """Return the power of two to divide each column by, (columns,) in float64; None to divide none.

    Products of very small or large values would leave the range of the arithmetic. Such columns are taken
    in units of their largest power of two, which rounds nothing.
    """
    # Two reductions take half the time of one of a copy.
    largest = torch.stack([end for piece in chunk for end in (piece.amax(0), -piece.amin(0))]).amax(0)
    exponents = floor_log2(largest)
    far = (exponents.abs() > _NEAR) & (largest > 0)
    return power_of_two(torch.where(far, exponents, 0)) if bool(far.any()) else None
