"""Modules whose buffers keep their format when a model is cast to another one."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn
from typing_extensions import Self


class ExactModule(nn.Module):
    """A module whose own buffers follow to another device, but are never cast: a grid stays float32."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        own: dict[str, Tensor | None] = self._buffers
        before = {name: buffer for name, buffer in own.items() if buffer is not None}
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for name, buffer in before.items():
            moved = own[name]
            if moved is not None and moved.dtype != buffer.dtype:
                own[name] = buffer.to(moved.device)
        return self
