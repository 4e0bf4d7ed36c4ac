"""One layer quantized: its weight as codes, and what there is to say about it."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Final

import attrs
from torch import Tensor

from tico_config import GPTQConfig, TicoError
from tico_modules import LayerReport
from tico_quantizers.calibration import GroupedGram, located
from tico_quantizers.conversion import solved_weight
from tico_quantizers.layers import QuantizedWeight, Target, columns, groups, matrix, outline_line, shape
from tico_quantizers.solvers import Factor, Solution, factored, loss_of_nearest, nearest, solve_by

# Of so many weights it is the number of operations that takes the time, and their copies are small.
_MOST_TOGETHER: Final = 2**22


class ReadInput:
    """What layers have read, with what the solver makes of it: once for all of them."""

    def __init__(self, gram: GroupedGram) -> None:
        self.gram = gram
        self._matrices = [part.matrix() for part in gram.parts]
        self._factors: dict[tuple[object, ...], list[Factor]] = {}

    def hessians(self, size: int) -> list[Tensor]:
        """Return H (size, size) of each group of channels."""
        return [matrix[-size:, -size:] for matrix in self._matrices]

    def factors(self, size: int, config: GPTQConfig) -> list[Factor]:
        """Return those of H as `config` orders and damps it."""
        key = config.act_order, config.damping, config.damping_reference, config.asymmetric
        if key not in self._factors:
            drifts = [self._drift(matrix, size, config.asymmetric) for matrix in self._matrices]
            pairs = zip(self.hessians(size), drifts, strict=True)
            self._factors[key] = [factored(hessian, config, drift) for hessian, drift in pairs]
        return self._factors[key]

    @staticmethod
    def _drift(matrix: Tensor, size: int, share: float) -> Tensor | None:
        """Return the share of (X̃ - X)ᵀ X that is to be made up for, where it is known."""
        return None if len(matrix) == size else matrix[:size, size:] * share


def solve_layers(targets: Sequence[Target[GPTQConfig]], read: ReadInput) -> list[QuantizedWeight]:
    """Return the weights of `targets`, in order, rounded with feedback by what all of them have read.

    Raises:
        TicoError: the solver refuses a weight or the data; with the path of the layer.
    """
    found = {
        target.path: weight
        for alike in _alike(targets)
        for target, weight in zip(alike, _solved(alike, read), strict=True)
    }
    return [found[target.path] for target in targets]


def _alike(targets: Sequence[Target[GPTQConfig]]) -> list[list[Target[GPTQConfig]]]:
    """Return `targets` in the parts that are solved for together: small layers of the same config."""
    parts: list[list[Target[GPTQConfig]]] = []
    for target in targets:
        fits = (
            part
            for part in parts
            if part[0].config == target.config and sum(map(_size, part)) + _size(target) <= _MOST_TOGETHER
        )
        part = next(fits, None)
        if part is None:
            parts.append([target])
        else:
            part.append(target)
    return parts


def _size(target: Target[GPTQConfig]) -> int:
    return math.prod(shape(target.layer))


def _solved(targets: Sequence[Target[GPTQConfig]], read: ReadInput) -> list[QuantizedWeight]:
    """Return the weights of `targets`, which are of the same config."""
    start = time.perf_counter()
    weights = [matrix(target.layer).chunk(groups(target.layer)) for target in targets]
    config, size = targets[0].config, columns(targets[0].layer)
    try:
        pairs = zip(zip(*weights, strict=True), read.factors(size, config), strict=True)
        solutions = list(zip(*(solve_by(alike, factor, config) for alike, factor in pairs), strict=True))
    except TicoError as error:
        if len(targets) == 1:
            raise located(error, targets[0].path) from None
        return [weight for target in targets for weight in _solved([target], read)]
    packed = [
        solved_weight(target.layer, own, config.super_block)
        for target, own in zip(targets, solutions, strict=True)
    ]
    each = (time.perf_counter() - start) / sum(map(_size, targets))
    return [
        QuantizedWeight(found, _solved_line(target, weight, own, read, each * _size(target)))
        for target, found, weight, own in zip(targets, packed, weights, solutions, strict=True)
    ]


def _solved_line(
    target: Target[GPTQConfig],
    weights: Sequence[Tensor],
    solutions: Sequence[Solution],
    read: ReadInput,
    seconds: float,
) -> LayerReport:
    size, config = columns(target.layer), target.config
    # Groups that are not static have grids of weights that feedback has changed.
    ours = solutions if config.static_groups or config.shared_columns is None else [None] * len(solutions)
    grouped = zip(weights, read.hessians(size), ours, strict=True)
    rounded = sum(loss_of_nearest(weight, hessian, config, own) for weight, hessian, own in grouped)
    figures = {
        "loss": sum(solution.loss for solution in solutions),
        "loss if rounded to nearest": rounded,
        "damping": max(solution.damping for solution in solutions),
        "dead columns": sum(solution.dead_columns for solution in solutions),
        "tokens": read.gram.rows,
        "effective tokens": read.gram.effective_rows,
    }
    hopeless = any(solution.rounded_only for solution in solutions)
    notes = _notes(read.gram.rows, size, hopeless=hopeless)
    return _line(target, figures, seconds, "; ".join(notes))


def _notes(tokens: int, size: int, *, hopeless: bool) -> Iterator[str]:
    """Yield what there is to say of a layer that was solved for."""
    if hopeless:
        yield "no damping sufficed, so rounded to nearest"
    if tokens < size:
        yield f"it read {tokens} tokens, fewer than its {size} columns: more data may help"


def round_layer(target: Target[GPTQConfig], tokens: int) -> QuantizedWeight:
    """Return the weight of `target`, an expert that read too few `tokens`, rounded to nearest."""
    start = time.perf_counter()
    weights = matrix(target.layer).chunk(groups(target.layer))
    found = [nearest(weight, target.config) for weight in weights]
    packed = solved_weight(target.layer, found, target.config.super_block)
    least = target.config.min_expert_tokens
    reason = f"it read {tokens} tokens, fewer than {least} and than its peers, so rounded to nearest"
    return QuantizedWeight(packed, _line(target, {"tokens": tokens}, time.perf_counter() - start, reason))


def _line(target: Target[GPTQConfig], figures: dict[str, float], seconds: float, reason: str) -> LayerReport:
    numbers = tuple((name, float(value)) for name, value in figures.items())
    return attrs.evolve(outline_line(target), reason=reason, seconds=seconds, figures=numbers)
