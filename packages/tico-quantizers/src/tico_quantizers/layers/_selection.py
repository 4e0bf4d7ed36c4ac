"""Which layers are left alone, and why."""

from __future__ import annotations

from torch import nn


def output_embedding(model: nn.Module) -> object:
    """Return the head of a language model that says which module it is."""
    getter = getattr(model, "get_output_embeddings", None)
    return getter() if callable(getter) else None
