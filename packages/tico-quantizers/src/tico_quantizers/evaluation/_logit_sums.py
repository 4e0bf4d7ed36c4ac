"""How far the distributions of two outputs are from each other, over many rows."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor

from tico_config import CalibrationError, Found, Problem
from tico_observers import products
from tico_quantizers.evaluation._divergence import divergence

_ROWS = 64
"""How many rows of logits are compared at a time."""


@attrs.define
class LogitSums:
    """What the distributions of the output add up to."""

    kl: float = 0.0
    equal: int = 0
    rows: int = 0

    def add(self, expected: Tensor, found: Tensor) -> None:
        """Count the rows (rows, classes) of both models.

        Raises:
            CalibrationError: they are of two shapes.
        """
        if expected.shape != found.shape:
            shapes = Found(f"{tuple(expected.shape)} and {tuple(found.shape)}")
            expected_shapes = "two models that give rows of one shape"
            raise CalibrationError(Problem(field="logits", value=shapes, expected=expected_shapes))
        pairs = (torch.split(each, _ROWS) for each in (expected, found.to(expected.device)))
        for one, other in zip(*pairs, strict=True):
            self.kl += float(products.total(divergence(one.double(), other.double())))
            self.equal += int((one.argmax(-1) == other.argmax(-1)).sum())
            self.rows += len(one)

    @property
    def mean(self) -> float:
        """The mean divergence of a row."""
        return self.kl / self.rows

    def require_rows(self) -> None:
        """Refuse to take the mean of nothing.

        Raises:
            CalibrationError: no row was counted.
        """
        if not self.rows:
            expected = "at least one batch with a real token"
            raise CalibrationError(Problem(field="batches", value=Found("none"), expected=expected))
