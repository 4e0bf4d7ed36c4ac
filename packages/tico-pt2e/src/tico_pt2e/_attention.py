"""Attention by operators that can be quantized, equal to the operator at its edges."""

from __future__ import annotations

import math
from typing import Final

import torch
from torch import Tensor

ATTENTION: Final = torch.ops.aten.scaled_dot_product_attention.default


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query keyᵀ scale + mask) value, as ``torch.nn.functional`` has it; no dropout."""
    if enable_gqa:
        key, value = _repeated(key, query), _repeated(value, query)
    factor = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    scores = torch.matmul(query, key.transpose(-2, -1)) * factor
    if is_causal:
        earlier = torch.ones(scores.shape[-2:], dtype=torch.bool, device=query.device).tril()
        weights = torch.softmax(scores.masked_fill(~earlier, -math.inf), -1)
    elif attn_mask is None:
        weights = torch.softmax(scores, -1)
    else:
        weights = _masked_softmax(scores, attn_mask)
    return torch.matmul(weights, value)


def _repeated(heads: Tensor, query: Tensor) -> Tensor:
    """Return each of the `heads` (…, heads, tokens, size) as often as queries read it."""
    return heads.repeat_interleave(query.shape[-3] // heads.shape[-3], -3)


def _masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Return the softmax of masked `scores`, 0 in a row of which nothing is left, where it would be NaN."""
    if mask.dtype == torch.bool:
        allowed, masked = mask, scores.masked_fill(~mask, -math.inf)
    else:
        # A mask may have more bits than the query, and what it is added to has the query's.
        mask = mask.to(scores.dtype)
        allowed, masked = mask > -math.inf, scores + mask
    nothing = ~allowed.any(-1, keepdim=True)
    return torch.softmax(masked.masked_fill(nothing, 0.0), -1).masked_fill(nothing, 0.0)
