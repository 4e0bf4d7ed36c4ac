"""A tensor that gets a row for each token, in memory that grows or that is taken once."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class TokenRows:
    """Rows (batch, heads, rows, channels), appended to along the last axis but one.

    Args:
        limit: how many rows there may be; memory for all is taken with the first ones. None lets it grow.

    >>> rows = TokenRows(limit=4)
    >>> rows.append(torch.ones(1, 1, 2, 8))
    >>> rows.read().shape, rows.nbytes
    (torch.Size([1, 1, 2, 8]), 128)
    """

    def __init__(self, limit: int | None = None) -> None:
        self.limit = limit
        self.count = 0
        self._memory: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of the memory that is taken."""
        return 0 if self._memory is None else self._memory.untyped_storage().nbytes()

    @property
    def is_empty(self) -> bool:
        """Whether it is not known yet what rows are like."""
        return self._memory is None

    def read(self) -> Tensor:
        """Return all rows, not to be changed; an empty tensor where it is not known what they are like."""
        return torch.empty(0) if self._memory is None else self._memory.narrow(-2, 0, self.count)

    def reserve(self, like: Tensor) -> None:
        """Take the memory for all rows, of the dtype, the device, the batch and the channels of `like`."""
        if self.limit is not None and not self._fits(like):
            with torch.inference_mode(mode=False):  # so that it can be written in any mode
                self._memory = like.new_zeros(*like.shape[:-2], self.limit, like.shape[-1])

    def append(self, rows: Tensor) -> None:
        """Put `rows` after those that there are."""
        if self.limit is None:
            # A copy: a view would keep the memory of all rows that `rows` is a part of.
            new = rows.clone() if self._memory is None else torch.cat([self.read(), rows], -2)
            self._memory, self.count = new, new.shape[-2]
            return
        self.reserve(rows)
        self._write(rows, self.count)

    def replace(self, rows: Tensor) -> None:
        """Have `rows` in the place of those that there are."""
        if self.limit is None:
            self._memory, self.count = rows.clone(), rows.shape[-2]
            return
        self.reserve(rows)
        self._write(rows, 0)

    def crop(self, count: int) -> None:
        """Keep the first `count` rows."""
        self.count = min(count, self.count)
        if self.limit is None and self._memory is not None:
            self._memory = self.read().clone()

    def change(self, action: Callable[[Tensor], Tensor]) -> None:
        """Replace the tensor by what `action` returns for it."""
        if self._memory is not None:
            self._memory = action(self._memory)

    def clear(self) -> None:
        """Forget all rows, and keep memory that was taken once."""
        self.count = 0
        if self.limit is None:
            self._memory = None

    def _fits(self, like: Tensor) -> bool:
        memory = self._memory
        if memory is None:
            return False
        same_shape = memory.shape[:-2] == like.shape[:-2] and memory.shape[-1] == like.shape[-1]
        return same_shape and memory.dtype == like.dtype and memory.device == like.device

    def _write(self, rows: Tensor, start: int) -> None:
        self.count = start + rows.shape[-2]
        if self._memory is not None:
            self._memory.narrow(-2, start, rows.shape[-2]).copy_(rows.detach())
