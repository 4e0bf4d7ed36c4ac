"""The quantization method "tico" of transformers."""

from __future__ import annotations


def register_transformers() -> None:
    """Register the quantization method with transformers."""
