"""What a page needs of a comparison of two models, whoever has made it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class ComparedBlock(Protocol):
    """How far the output of a block is off, as shares of the squared norm of the float output."""

    @property
    def path(self) -> str:
        """The path of the block; empty for a model that is one block."""

    @property
    def own(self) -> float:
        """What the block adds by itself, on the inputs that the float one has."""

    @property
    def accumulated(self) -> float:
        """What has come together in the quantized model so far."""


class Compared(Protocol):
    """How far a quantized model is from the float one, as `compare` of tico.quantization says it.

    Named by `Report.to_html`.
    """

    @property
    def lines(self) -> Sequence[ComparedBlock]:
        """The error of each block, in the order of the model."""

    @property
    def kl(self) -> float:
        """The mean divergence of the distributions of the output, in nats."""

    @property
    def agreement(self) -> float:
        """The share of rows whose largest logit is the same one in both."""

    @property
    def rows(self) -> int:
        """The number of rows of the output that were compared."""
