"""How far what a quantized model says is from what the float one does, for one sample after the other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tico_config import CalibrationError, Found, Problem
from tico_quantizers.algorithms.scale_tune._logits import run
from tico_quantizers.algorithms.scale_tune._teacher import Teacher
from tico_quantizers.calibration import Call
from tico_quantizers.evaluation import divergence
from tico_quantizers.tuning import Factor, lent

_ROWS: Final = 64
"""How many rows of logits are compared at a time."""


def mean_divergence(expected: Tensor, found: Tensor) -> Tensor:
    """Return the mean over rows of KL(p ‖ q), for distributions p by `expected` and q by `found`.

    Both are logits (rows, classes); in float32 whatever they are in. What the derivatives need is computed
    again for some rows at a time.

    >>> round(float(mean_divergence(torch.zeros(1, 2), torch.tensor([[0.0, 1.0986]]))), 4)
    0.1438
    """
    pairs = zip(torch.split(expected, _ROWS), torch.split(found, _ROWS), strict=True)
    sums = [_summed(one, other) for one, other in pairs]
    return torch.stack(sums).sum() / len(expected)


def _summed(expected: Tensor, found: Tensor) -> Tensor:
    if not torch.is_grad_enabled():
        return _divergences(expected, found)
    total: Tensor = checkpoint(_divergences, expected, found, use_reentrant=False, preserve_rng_state=False)
    return total


def _divergences(expected: Tensor, found: Tensor) -> Tensor:
    return divergence(expected.to(torch.float32), found.to(torch.float32)).sum(-1).sum()


@attrs.frozen(eq=False, kw_only=True)
class Divergences:
    """The divergence of a quantized model from the float one, for each of `samples`.

    `teacher` is the float model, and `model` the root of the quantized one, which computes with `factors`.
    """

    teacher: Teacher
    model: nn.Module
    samples: Sequence[Call]
    factors: Sequence[Factor]

    def __call__(self, sample: int, /) -> Tensor:
        """Return the divergence for sample number `sample`; it has derivatives within `lending`."""
        call = self.samples[sample]
        expected = self.teacher.logits(sample, call)
        logits, select = run(self.model, call)
        found = select(logits)
        if found.shape != expected.shape:
            shapes = Found(f"{tuple(expected.shape)}, then {tuple(found.shape)}")
            raise CalibrationError(
                Problem(field="logits", value=shapes, expected="of one shape before and after quantization")
            )
        return mean_divergence(expected, found)

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Let the model compute with the values of the factors as they are now."""
        with lent([factor.loan() for factor in self.factors]):
            yield
