"""Adapters of peft on integer layers."""

from __future__ import annotations


def register_peft() -> None:
    """Register the integer layers with peft."""
