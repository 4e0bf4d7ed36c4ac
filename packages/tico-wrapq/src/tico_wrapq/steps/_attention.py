"""Scaled dot-product attention, taken apart into steps."""

from __future__ import annotations

import math
from typing import Protocol

import attrs
import torch
from torch import Tensor

from tico_wrapq.steps._kept_scores import OUT_OF_REACH


class Move(Protocol):
    """Passes the result of a step through its point."""

    def __call__(self, step: str, result: Tensor) -> Tensor:
        """Return `result`, seen or moved to the grid of `step`."""


@attrs.frozen(eq=False)
class Attention:
    """The arguments of torch's `scaled_dot_product_attention`, by their names and in their order there."""

    query: Tensor
    key: Tensor
    value: Tensor
    attn_mask: Tensor | None = None
    dropout_p: float = 0.0
    is_causal: bool = False
    scale: float | None = attrs.field(default=None, kw_only=True)
    enable_gqa: bool = attrs.field(default=False, kw_only=True)

    def by_steps(self, move: Move) -> Tensor:
        """Return softmax(query keyᵀ scale + mask) value (..., queries, channels).

        The steps are `logits`, `scaled`, `masked` where there is a mask, `softmax`, and the result itself.
        """
        key, value, mask = self._repeated(self.key), self._repeated(self.value), self._mask()
        factor = 1 / math.sqrt(self.query.shape[-1]) if self.scale is None else self.scale
        left_out = None if mask is None else _out_of_reach(self.query @ key.transpose(-2, -1) * factor + mask)
        logits = move("logits", _within(self.query @ key.transpose(-2, -1), left_out))
        scores = move("scaled", logits * factor)
        if mask is not None and left_out is not None:
            masked = move("masked", _within(scores + (mask - _offset(mask)), left_out))
            scores = masked.masked_fill(left_out, -math.inf)
        weights = torch.softmax(scores, -1)
        if left_out is not None:
            # A row of which nothing is left has weights of 0, where a softmax gives NaN.
            weights = weights.masked_fill(left_out.all(-1, keepdim=True), 0.0)
        weights = torch.nn.functional.dropout(move("softmax", weights), self.dropout_p)
        return move("", weights @ value)

    def _repeated(self, x: Tensor) -> Tensor:
        return x.repeat_interleave(self.query.shape[-3] // x.shape[-3], -3) if self.enable_gqa else x

    def _mask(self) -> Tensor | None:
        given = self.attn_mask
        if self.is_causal:
            shape = (self.query.shape[-2], self.key.shape[-2])
            given = torch.ones(shape, dtype=torch.bool, device=self.query.device).tril()
        if given is None or given.dtype is not torch.bool:
            return given
        return torch.zeros_like(given, dtype=self.query.dtype).masked_fill(~given, -math.inf)


def _out_of_reach(scores: Tensor) -> Tensor:
    """Return which scores are too far below the largest of their row to have a weight."""
    return (scores < scores.amax(-1, keepdim=True) - OUT_OF_REACH) | (scores == -math.inf)


def _offset(mask: Tensor) -> Tensor:
    """Return what a mask adds to a whole row, which no softmax sees, where it leaves nothing of the row."""
    largest = mask.amax(-1, keepdim=True)
    whole = largest.isfinite() & (largest < -OUT_OF_REACH)
    return largest.where(whole, torch.zeros_like(largest))


def _within(scores: Tensor, left_out: Tensor | None) -> Tensor:
    """Return `scores` with 0, which every grid has, where they are left out."""
    return scores if left_out is None else scores.masked_fill(left_out, 0.0)
