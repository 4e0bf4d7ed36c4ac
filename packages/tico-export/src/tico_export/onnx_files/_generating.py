"""How a file with keys and values is verified: by a text of which half is read at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from tico_export.program import fed
from tico_export.protocol import Example

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Reads tokens, the mask of all tokens so far and positions; returns logits, and keeps keys and values."""


def generated(example: Example, step: Step) -> Tensor:
    """Return logits (batch, tokens, words): `step` reads half of the tokens at once, the others one by one.

    `step` starts from an empty cache.
    """
    tokens = fed(["input_ids"], example)["input_ids"]
    given = example.kwargs.get("attention_mask")
    mask = given if isinstance(given, Tensor) else torch.ones_like(tokens)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    half = max(1, tokens.shape[1] // 2)
    ends = range(half, tokens.shape[1] + 1)
    starts = [0, *ends]
    logits = [
        step(tokens[:, start:end], mask[:, :end], places[:, start:end])
        for start, end in zip(starts, ends, strict=False)
    ]
    return torch.cat(logits, 1)
