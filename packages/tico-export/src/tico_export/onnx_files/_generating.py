"""How a file with keys and values is verified: by a text of which half is read at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor

from tico_export.program import fed
from tico_export.protocol import Example

Step: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Reads tokens, the mask of all tokens so far and positions; returns logits, and keeps keys and values."""


def generated(example: Example, start: Callable[[], Step]) -> Tensor:
    """Return logits (batch, tokens, words): half of the tokens are read at once, the others one by one.

    Where that gives the logits of the last token of the half alone, those before it are read one by one, too.
    `start` empties the cache and returns what reads on.
    """
    tokens = fed(["input_ids"], example)["input_ids"]
    given = example.kwargs.get("attention_mask")
    mask = given if isinstance(given, Tensor) else torch.ones_like(tokens)
    places = (mask.cumsum(-1) - 1).clamp(min=0)

    def read(ends: range) -> Iterator[Tensor]:
        step = start()
        for begin, end in pairwise((0, *ends)):
            yield step(tokens[:, begin:end], mask[:, :end], places[:, begin:end])

    half = max(1, tokens.shape[1] // 2)
    logits = list(read(range(half, tokens.shape[1] + 1)))
    missing = tokens.shape[1] - sum(each.shape[1] for each in logits)
    return torch.cat([*read(range(1, missing + 1)), *logits], 1)
