"""Scaled dot-product attention, taken apart into steps."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from tico_wrapq.steps._score_tracing import ScoreTracing


class Move(Protocol):
    """Passes the result of a step through its point."""

    def __call__(self, step: str, result: Tensor) -> Tensor:
        """Return `result`, seen or moved to the grid of `step`."""


def attention_by_steps(
    move: Move,
    tracing: ScoreTracing,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) value (..., queries, channels).

    The steps are `logits`, `scaled`, `masked` where there is a mask, `softmax`, and the result itself.
    """
    if enable_gqa:
        repeats = query.shape[-3] // key.shape[-3]
        key, value = key.repeat_interleave(repeats, -3), value.repeat_interleave(repeats, -3)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    mask = _mask(query, key, attn_mask, is_causal=is_causal)
    left_out = None if mask is None else mask < torch.finfo(mask.dtype).min / 2
    logits = move("logits", _within(query @ key.transpose(-2, -1), left_out))
    scores = move("scaled", logits * factor)
    if mask is not None and left_out is not None:
        masked = move("masked", _within(scores + mask, left_out))
        scores = masked.masked_fill(left_out, -math.inf)
    weights = torch.softmax(scores, -1)
    if left_out is not None:
        # A row of which nothing is left has weights of 0, where a softmax gives NaN.
        weights = weights.masked_fill(left_out.all(-1, keepdim=True), 0.0)
    return move("", move("softmax", weights) @ value)


def _mask(query: Tensor, key: Tensor, given: Tensor | None, *, is_causal: bool) -> Tensor | None:
    if is_causal:
        shape = (query.shape[-2], key.shape[-2])
        given = torch.ones(shape, dtype=torch.bool, device=query.device).tril()
    if given is None or given.dtype is not torch.bool:
        return given
    return torch.zeros_like(given, dtype=query.dtype).masked_fill(~given, -math.inf)


def _within(scores: Tensor, left_out: Tensor | None) -> Tensor:
    """Return `scores` with 0, which every grid has, where they are left out."""
    return scores if left_out is None else scores.masked_fill(left_out, 0.0)
