"""The steps that move the codes and scales of a block's layers."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Final, TypeAlias

import attrs
import torch
from torch import Tensor

from tico_config import BlockTuneConfig, NumericsError
from tico_quantizers.algorithms.block_tune._loss import BlockLoss
from tico_quantizers.calibration import BlockRuns, attempted_twice
from tico_quantizers.layers import ExpertLinear, FloatLayer, Layer, QuantizedWeight, matrix, weight_axes
from tico_quantizers.tuning import Descent, LearnedRounding, Loan, Schedule, Split, descend, lent

_CHECKS: Final = 8
_NOT_FLOAT: Final = "its weight is none of a float layer of its own, so it stays at its start"
_IN_STEP: Final = "calls of its block go on with what others have left in an object, so it stays at its start"
_NO_OUTPUT: Final = "its block gives no tensor of floats, so it stays at its start"
_NO_DERIVATIVES: Final = "its block has no derivatives, so it stays at its start"
_NOT_FINITE: Final = "what its block gives is not finite, so it stays at its start"
_NO_BETTER: Final = "no step brought its block nearer to the float one, so it stays at its start"


def tuned(
    config: BlockTuneConfig, layers: Mapping[str, Layer], weights: Sequence[QuantizedWeight], runs: BlockRuns
) -> list[QuantizedWeight]:
    """Return the `weights` of `layers`, by path, after the best of the steps that `config` asks for.

    Raises:
        CalibrationError: there is but one sequence, so that none can be held out.
    """
    start = time.perf_counter()
    free = {path: layer for path, layer in layers.items() if _has_own_weight(layer)}
    weights = [each if each.line.path in free else _noted(each, _NOT_FLOAT) for each in weights]
    if not free:
        return weights
    found = _attempt(config, free, weights, runs)
    seconds = (time.perf_counter() - start) / len(free)
    return [_finished(each, found, seconds) if each.line.path in free else each for each in weights]


Learned: TypeAlias = tuple[Layer, LearnedRounding]


@attrs.frozen(eq=False)
class _Moved:
    """Where the weights of a block have been moved to, by path."""

    roundings: Mapping[str, LearnedRounding]
    descent: Descent


def _attempt(
    config: BlockTuneConfig, layers: Mapping[str, Layer], weights: Sequence[QuantizedWeight], runs: BlockRuns
) -> _Moved | str:
    """Return the weights moved, or why they cannot be."""
    if not runs.are_apart:
        return _IN_STEP
    if not len(runs):
        return _NO_OUTPUT
    learned = {
        each.line.path: (
            layers[each.line.path],
            LearnedRounding.of(matrix(layers[each.line.path]), each.packed),
        )
        for each in weights
        if each.line.path in layers
    }
    pairs = tuple(learned.values())
    if attempted_twice(lambda: _slopes(pairs, runs)) is None:
        return _NO_DERIVATIVES
    try:
        descent = _descended(config, pairs, runs)
    except NumericsError:
        return _NOT_FINITE
    return _Moved({path: rounding for path, (_, rounding) in learned.items()}, descent)


def _slopes(learned: Sequence[Learned], runs: BlockRuns) -> Sequence[Tensor]:
    """Return the derivatives for one sample: to know whether there are any."""
    with torch.enable_grad(), _lent(learned):
        return torch.autograd.grad(BlockLoss(runs)(0), _leaves(learned), allow_unused=True)


def _leaves(learned: Sequence[Learned]) -> list[Tensor]:
    return [leaf for _, rounding in learned for leaf in (rounding.offsets, rounding.stretches)]


def _descended(config: BlockTuneConfig, learned: Sequence[Learned], runs: BlockRuns) -> Descent:
    schedule = Schedule(
        steps=config.steps, rate=config.rate, samples=config.samples, checks=_CHECKS, seed=config.seed
    )
    split = Split.of(len(runs), share=config.held_out, seed=config.seed)
    return descend(_leaves(learned), BlockLoss(runs), split, schedule, within=lambda: _lent(learned))


def _lent(learned: Iterable[Learned]) -> AbstractContextManager[None]:
    """Return a context in which layers compute with their weights as they are on their grids now."""
    return lent(
        [Loan(module=layer, name="weight", tensor=_as_held(layer, each.weight())) for layer, each in learned]
    )


def _has_own_weight(layer: Layer) -> bool:
    return isinstance(layer, FloatLayer) and not isinstance(layer, ExpertLinear)


def _as_held(layer: Layer, weight: Tensor) -> Tensor:
    """Return `weight`, which has its output channels in front, as `layer` holds it."""
    swapped = isinstance(layer, FloatLayer) and weight_axes(layer) == (1, 0)
    return (weight.transpose(0, 1) if swapped else weight).to(layer.weight.dtype)


def _finished(weight: QuantizedWeight, found: _Moved | str, seconds: float) -> QuantizedWeight:
    """Return the weight of a layer after an attempt, with what its line says of that."""
    line = attrs.evolve(weight.line, seconds=weight.line.seconds + seconds)
    if isinstance(found, str):
        return _noted(QuantizedWeight(weight.packed, line), found)
    descent = found.descent
    figures = {
        "error of the block at its start": descent.before,
        "error of the block": descent.after,
        "step": float(descent.step),
    }
    line = attrs.evolve(line, figures=(*line.figures, *figures.items()))
    if descent.step == 0:
        return _noted(QuantizedWeight(weight.packed, line), _NO_BETTER)
    return QuantizedWeight(found.roundings[line.path].packed(), line)


def _noted(weight: QuantizedWeight, note: str) -> QuantizedWeight:
    reason = "; ".join(filter(None, (weight.line.reason, note)))
    return QuantizedWeight(weight.packed, attrs.evolve(weight.line, reason=reason))
