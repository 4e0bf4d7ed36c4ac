"""The codes that layers start from."""

from __future__ import annotations

import time
from collections.abc import Sequence

import attrs
from torch import Tensor

from tico_config import BlockTuneConfig, GPTQConfig, TicoError
from tico_modules import LayerReport
from tico_quantizers.calibration import GroupedGram, located
from tico_quantizers.conversion import solved_weight
from tico_quantizers.layers import QuantizedWeight, Target, groups, matrix, outline_line
from tico_quantizers.solvers import Factor, Solution, factored, loss_of_nearest, nearest, solve_by


def start_layers(targets: Sequence[Target[BlockTuneConfig]], read: GroupedGram) -> list[QuantizedWeight]:
    """Return the weights that `targets`, which have all read what `read` tells, start from, in order.

    Raises:
        TicoError: the solver refuses a weight or the data; with the path of the layer.
    """
    hessians = [part.matrix() for part in read.parts]
    factors: dict[GPTQConfig, list[Factor]] = {}
    return [_started(target, hessians, factors, read) for target in targets]


def round_layer(target: Target[BlockTuneConfig], tokens: int) -> QuantizedWeight:
    """Return the weight of `target`, an expert that read too few `tokens`, rounded to nearest."""
    begin, config = time.perf_counter(), as_gptq(target.config)
    found = [nearest(weight, config) for weight in matrix(target.layer).chunk(groups(target.layer))]
    least = target.config.min_expert_tokens
    reason = (
        f"it read {tokens} tokens, fewer than {least} and than its peers, so it starts rounded to nearest"
    )
    line = _line(target, {"tokens": tokens}, time.perf_counter() - begin)
    return QuantizedWeight(solved_weight(target.layer, found), attrs.evolve(line, reason=reason))


def as_gptq(config: BlockTuneConfig) -> GPTQConfig:
    """Return how GPTQ finds the codes to start from."""
    return GPTQConfig(
        bits=config.bits,
        group_size=config.group_size,
        symmetric=config.symmetric,
        dtype=config.dtype,
        observer=config.observer,
        damping=config.damping,
    )


def _started(
    target: Target[BlockTuneConfig],
    hessians: Sequence[Tensor],
    factors: dict[GPTQConfig, list[Factor]],
    read: GroupedGram,
) -> QuantizedWeight:
    begin, config = time.perf_counter(), as_gptq(target.config)
    weights = matrix(target.layer).chunk(groups(target.layer))
    try:
        found = _solutions(target, weights, hessians, factors)
    except TicoError as error:
        raise located(error, target.path) from None
    triples = zip(weights, hessians, found, strict=True)
    figures = {
        "loss": sum(solution.loss for solution in found),
        "loss if rounded to nearest": sum(
            loss_of_nearest(weight, hessian, config, own) for weight, hessian, own in triples
        ),
        "tokens": read.rows,
    }
    line = _line(target, figures, time.perf_counter() - begin)
    return QuantizedWeight(solved_weight(target.layer, found), line)


def _solutions(
    target: Target[BlockTuneConfig],
    weights: Sequence[Tensor],
    hessians: Sequence[Tensor],
    factors: dict[GPTQConfig, list[Factor]],
) -> list[Solution]:
    config = as_gptq(target.config)
    pairs = list(zip(weights, hessians, strict=True))
    if target.config.start == "nearest":
        return [nearest(weight, config, hessian.diagonal()) for weight, hessian in pairs]
    if config not in factors:
        factors[config] = [factored(hessian, config) for hessian in hessians]
    return [
        solve_by([weight], factor, config)[0] for weight, factor in zip(weights, factors[config], strict=True)
    ]


def _line(target: Target[BlockTuneConfig], figures: dict[str, float], seconds: float) -> LayerReport:
    numbers = tuple((name, float(value)) for name, value in figures.items())
    return attrs.evolve(outline_line(target), seconds=seconds, figures=numbers)
