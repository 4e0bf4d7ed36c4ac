"""Keys or values of the tokens read so far: the older ones as codes, the most recent ones as floats."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tico_modules._cache.cache_grid import CacheGrid, Codes


class TokenStore:
    """Tensors (batch, heads, tokens, channels) of one layer, appended to token by token.

    How many tokens are codes depends on how many there are, not on how they came: with n tokens and a grid
    that g of them share, it is the largest multiple of g up to ``n - residual_length``. Once a group of
    tokens has codes these stay.

    Args:
        grid: how tokens become codes; without one, all stay floats.
        residual_length: how many of the most recent tokens are floats at least.

    >>> from tico_config import DType, PerGroup
    >>> grid = CacheGrid(dtype=DType.uint(4), symmetric=False, granularity=PerGroup(axis=-2, size=4))
    >>> store = TokenStore(grid, residual_length=3)
    >>> store.append(torch.randn(1, 2, 10, 16))
    >>> store.count, store.coded, store.recent.shape[-2]
    (10, 4, 6)
    """

    def __init__(self, grid: CacheGrid | None, residual_length: int) -> None:
        self.grid = grid
        self.residual_length = residual_length
        self._codes: Codes | None = None
        self._recent: Tensor | None = None

    @property
    def recent(self) -> Tensor:
        """The floats of the most recent tokens (batch, heads, tokens, channels)."""
        return torch.empty(0) if self._recent is None else self._recent

    @property
    def codes(self) -> Codes | None:
        """The codes of the older tokens, or None."""
        return self._codes

    @property
    def coded(self) -> int:
        """How many tokens are codes."""
        return 0 if self._codes is None else self._codes.packed.shape[-2]

    @property
    def count(self) -> int:
        """How many tokens there are."""
        return self.coded + (0 if self._recent is None else self._recent.shape[-2])

    @property
    def nbytes(self) -> int:
        """The bytes of all tensors, but for fixed scales, which belong to the model."""
        return sum(each.untyped_storage().nbytes() for each in self._tensors())

    def append(self, x: Tensor) -> None:
        """Take in the next tokens, and make codes of those that are no longer among the most recent.

        Raises:
            NumericsError: a token that becomes codes holds NaN or infinity.
        """
        recent = x if self._recent is None else torch.cat([self._recent, x], -2)
        leaving = self._leaving(recent.shape[-2])
        if leaving and self.grid is not None:
            self._codes = _joined(self._codes, self.grid.quantize(recent[..., :leaving, :]))
        # A copy: a view would keep the floats of all tokens alive.
        self._recent = recent[..., leaving:, :].clone()

    def read(self) -> Tensor:
        """Return all tokens: the values of the codes, then the floats, in the dtype of these."""
        if self._codes is None or self.grid is None or self._recent is None:
            return self.recent
        values = self.grid.dequantize(self._codes, self._recent.shape[-1], self._recent.dtype)
        return torch.cat([values, self._recent], -2)

    def crop(self, count: int) -> None:
        """Keep the first `count` tokens.

        Tokens of a group that is cut apart become floats again, with the values that they had.
        """
        if count >= self.count or self._recent is None:
            return
        coded = min(self.coded, count // self._step * self._step)
        floats = self.read()[..., coded:count, :].clone() if coded < self.coded else None
        self._recent = self._recent[..., : count - self.coded, :].clone() if floats is None else floats
        if self._codes is not None:
            self._codes = _cut(self._codes, coded, self._step) if coded else None

    def change(self, action: Callable[[Tensor], Tensor]) -> None:
        """Replace every tensor by what `action` returns for it, such as other samples of the batch."""
        if self._codes is not None:
            self._codes = self._codes.map(action)
        if self._recent is not None:
            self._recent = action(self._recent)

    def clear(self) -> None:
        """Forget all tokens."""
        self._codes = self._recent = None

    @property
    def _step(self) -> int:
        return 1 if self.grid is None else self.grid.tokens

    def _leaving(self, floats: int) -> int:
        """Return how many of so many floats become codes now."""
        if self.grid is None:
            return 0
        return max(floats - self.residual_length, 0) // self._step * self._step

    def _tensors(self) -> list[Tensor]:
        found = [] if self._codes is None else self._codes.tensors()
        return found if self._recent is None else [*found, self._recent]


def _joined(old: Codes | None, new: Codes) -> Codes:
    if old is None:
        return new
    joined = [torch.cat(pair, -2) for pair in zip(old.tensors(), new.tensors(), strict=True)]
    return old.with_tensors(joined)


def _cut(codes: Codes, tokens: int, step: int) -> Codes:
    packed, *grids = codes.tensors()
    kept = [each[..., : tokens // step, :].clone() for each in grids]
    return codes.with_tensors([packed[..., :tokens, :].clone(), *kept])
