"""Keys or values of the tokens read so far: the older ones as codes, the most recent ones as floats."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from tico_config import LifecycleError, Problem
from tico_modules._cache.cache_grid import CacheGrid, Codes
from tico_modules._cache.token_rows import TokenRows


@attrs.frozen(eq=False)
class NextTokens:
    """The tokens `given` to a store, the codes that these bring, and the most recent tokens afterwards."""

    given: Tensor
    codes: Codes | None
    recent: Tensor


class TokenStore:
    """Tensors (batch, heads, tokens, channels) of one layer, appended to token by token.

    How many tokens are codes depends on how many there are, not on how they came: with n tokens and a grid
    that g of them share, it is the largest multiple of g up to ``n - residual_length``. Once a group of
    tokens has codes these stay.

    Args:
        grid: how tokens become codes; without one, all stay floats.
        residual_length: how many of the most recent tokens are floats at least.
        max_length: how many tokens there may be; their memory is taken with the first ones, once. Without
            it, there may be any number, and memory grows.

    >>> from tico_config import DType, PerGroup
    >>> grid = CacheGrid(dtype=DType.uint(4), symmetric=False, granularity=PerGroup(axis=-2, size=4))
    >>> store = TokenStore(grid, residual_length=3)
    >>> store.append(torch.randn(1, 2, 10, 16))
    >>> store.count, store.coded, store.recent.shape[-2]
    (10, 4, 6)
    """

    def __init__(self, grid: CacheGrid | None, residual_length: int, max_length: int | None = None) -> None:
        self.grid = grid
        self.residual_length = residual_length
        self.max_length = max_length
        codes, grids, floats = (None, None, None) if max_length is None else self._limits(max_length)
        self._packed, self._scale, self._zero_point = TokenRows(codes), TokenRows(grids), TokenRows(grids)
        self._recent = TokenRows(floats)

    @property
    def recent(self) -> Tensor:
        """The floats of the most recent tokens (batch, heads, tokens, channels)."""
        return self._recent.read()

    @property
    def codes(self) -> Codes | None:
        """The codes of the older tokens, or None."""
        if not self.coded:
            return None
        scale, zero_point = (
            None if rows.is_empty else rows.read() for rows in (self._scale, self._zero_point)
        )
        return Codes(self._packed.read(), scale, zero_point)

    @property
    def coded(self) -> int:
        """How many tokens are codes."""
        return self._packed.count

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return self.coded + self._recent.count

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, but for fixed scales, which belong to the model."""
        return sum(rows.nbytes for rows in self._all())

    def reserve(self, like: Tensor) -> None:
        """Take the memory for `max_length` tokens such as those of `like`, unless it grows."""
        if self.max_length is None:
            return
        self._recent.reserve(like)
        if self.grid is not None:
            step = like.new_zeros(*like.shape[:-2], self._step, like.shape[-1])
            for rows, each in self._rows_for(self.grid.quantize(step)):
                rows.reserve(each)

    def append(self, x: Tensor) -> None:
        """Take in the next tokens, and make codes of those that are no longer among the most recent.

        Raises:
            LifecycleError: there would be more than `max_length` tokens; nothing is taken in.
            NumericsError: a token that becomes codes holds NaN or infinity.
        """
        self.take(self.encoded(x))

    def encoded(self, x: Tensor) -> NextTokens:
        """Return what `take` takes in for the next tokens; nothing changes yet, also where this raises.

        Raises:
            LifecycleError: there would be more than `max_length` tokens.
            NumericsError: a token that becomes codes holds NaN or infinity.
        """
        self._require_room(x.shape[-2])
        recent = torch.cat([self._recent.read(), x], -2) if self._recent.count else x
        leaving = self._leaving(recent.shape[-2])
        codes = self.grid.quantize(recent[..., :leaving, :]) if leaving and self.grid is not None else None
        return NextTokens(x, codes, recent[..., leaving:, :])

    def take(self, tokens: NextTokens) -> None:
        """Take in the tokens that `encoded` was given."""
        if self._recent.is_empty or not self.count:
            self.reserve(tokens.given)
        for rows, new in () if tokens.codes is None else self._rows_for(tokens.codes):
            rows.append(new)
        self._recent.replace(tokens.recent)

    def read(self) -> Tensor:
        """Return all tokens: the values of the codes, then the floats, in the dtype of these."""
        codes, recent = self.codes, self.recent
        if codes is None or self.grid is None:
            return recent
        values = self.grid.dequantize(codes, recent.shape[-1], recent.dtype)
        return torch.cat([values, recent], -2)

    def crop(self, count: int) -> None:
        """Keep the first `count` tokens.

        Tokens of a group that is cut apart become floats again, with the values that they had.
        """
        if count >= self.count:
            return
        coded = min(self.coded, count // self._step * self._step)
        if coded < self.coded:
            self._recent.replace(self.read()[..., coded:count, :])
            self._packed.crop(coded)
            for rows in (self._scale, self._zero_point):
                rows.crop(coded // self._step)
        else:
            self._recent.crop(count - coded)

    def change(self, action: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what `action` returns for it, such as other samples of the batch."""
        for rows in self._all():
            rows.change(action)

    def clear(self) -> None:
        """Forget all tokens; memory that was taken once stays."""
        for rows in self._all():
            rows.clear()

    @property
    def _step(self) -> int:
        return 1 if self.grid is None else self.grid.tokens

    def _all(self) -> tuple[TokenRows, ...]:
        return self._packed, self._scale, self._zero_point, self._recent

    def _rows_for(self, codes: Codes) -> list[tuple[TokenRows, Tensor]]:
        """Return what `codes` has of each tensor, with the rows that it belongs to."""
        pairs = (
            (self._packed, codes.packed),
            (self._scale, codes.scale),
            (self._zero_point, codes.zero_point),
        )
        return [(rows, each) for rows, each in pairs if each is not None]

    def _limits(self, max_length: int) -> tuple[int, int, int]:
        """Return how many rows of codes, of grids and of floats there may be."""
        if self.grid is None:
            return 0, 0, max_length
        grids = max(max_length - self.residual_length, 0) // self._step
        return grids * self._step, grids, min(self.residual_length + self._step - 1, max_length)

    def _leaving(self, floats: int) -> int:
        """Return how many of so many floats become codes now."""
        if self.grid is None:
            return 0
        return max(floats - self.residual_length, 0) // self._step * self._step

    def _require_room(self, tokens: int) -> None:
        if self.max_length is None or self.count + tokens <= self.max_length:
            return
        needed = self.count + tokens
        sentence = f"the cache has {self.count} of {self.max_length} tokens, and cannot take {tokens} more"
        remedy = f"make it by quantized_cache(model, max_length={needed}), or call its reset()"
        problem = Problem(
            field="max_length",
            value=self.max_length,
            expected=f"at least {needed}",
            sentence=sentence,
            remedy=remedy,
        )
        raise LifecycleError(problem)
