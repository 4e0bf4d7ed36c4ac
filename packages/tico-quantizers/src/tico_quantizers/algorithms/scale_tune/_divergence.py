"""How far what a quantized model says is from what the float one does, for one sample after the other."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import attrs
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tico_config import CalibrationError, Found, Problem
from tico_quantizers.calibration import Call, Replay, quiet_runs
from tico_quantizers.evaluation import divergence, logits_of, rows_of
from tico_quantizers.tuning import Factor, TreeState, lent

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

    `before` is the tree of the float model, and `model` the root of the quantized one, which computes with
    `factors`.
    """

    before: TreeState
    model: nn.Module
    samples: Sequence[Call]
    factors: Sequence[Factor]

    def __call__(self, sample: int, /) -> Tensor:
        """Return the divergence for sample number `sample`; it has derivatives within `lending`."""
        call = self.samples[sample]
        with torch.no_grad(), self.before.again(), quiet_runs(self.before.root):
            expected = _logits(self.before.root, call)
        found = _logits(self.model, call)
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


def _logits(model: nn.Module, call: Call) -> Tensor:
    """Return the logits (rows, classes) of real tokens that `model` gives for `call`."""
    (args, kwargs, autocast), *_ = Replay([call], {})
    with autocast.again():
        torch.manual_seed(0)  # both draw the same numbers
        output: object = model(*args, **{**kwargs, **_without_cache(model)})
    return rows_of(kwargs)(logits_of(output, "model"))


def _without_cache(model: nn.Module) -> Mapping[str, object]:
    """Return the argument by which a model makes no cache, if it takes one: blocks could not be run again."""
    takes = "use_cache" in inspect.signature(model.forward).parameters
    return {"use_cache": False} if takes else {}
