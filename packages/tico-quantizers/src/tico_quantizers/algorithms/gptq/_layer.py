"""One layer quantized: its weight as codes, and what there is to say about it."""

from __future__ import annotations

import time
from collections.abc import Iterator

import attrs
import torch
from torch import Tensor

from tico_config import GPTQConfig, TicoError
from tico_modules import LayerReport, PackedWeight
from tico_quantizers.calibration import GroupedGram, located
from tico_quantizers.layers import QuantizedWeight, Target, columns, groups, matrix, outline_line, shape
from tico_quantizers.solvers import Factor, Solution, factored, loss_of_nearest, nearest, solve_by


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


def solve_layer(target: Target[GPTQConfig], read: ReadInput) -> QuantizedWeight:
    """Return the weight of `target` rounded with feedback by what it has read.

    Raises:
        TicoError: the solver refuses the weight or the data; with the path of the layer.
    """
    start = time.perf_counter()
    weights, size = matrix(target.layer).chunk(groups(target.layer)), columns(target.layer)
    try:
        factors = read.factors(size, target.config)
        pairs = zip(weights, factors, strict=True)
        solutions = [solve_by(weight, factor, target.config) for weight, factor in pairs]
    except TicoError as error:
        raise located(error, target.path) from None
    packed = _packed(target, solutions)
    seconds = time.perf_counter() - start
    grouped = zip(weights, read.hessians(size), strict=True)
    rounded = sum(loss_of_nearest(weight, hessian, target.config) for weight, hessian in grouped)
    figures = {
        "loss": sum(solution.loss for solution in solutions),
        "loss if rounded to nearest": rounded,
        "damping": max(solution.damping for solution in solutions),
        "dead columns": sum(solution.dead_columns for solution in solutions),
        "tokens": read.gram.rows,
        "effective tokens": read.gram.effective_rows,
    }
    hopeless = any(solution.rounded_only for solution in solutions)
    notes = _notes(target.config, read.gram.rows, size, hopeless=hopeless)
    return QuantizedWeight(packed, _line(target, figures, seconds, "; ".join(notes)))


def _notes(config: GPTQConfig, tokens: int, size: int, *, hopeless: bool) -> Iterator[str]:
    """Yield what there is to say of a layer that was solved for."""
    if hopeless:
        yield "no damping sufficed, so rounded to nearest"
    if tokens < size:
        yield f"it read {tokens} tokens, fewer than its {size} columns: more data may help"
    if config.static_groups and config.group_size is None:
        yield "static_groups has no effect without a group_size"


def round_layer(target: Target[GPTQConfig], tokens: int) -> QuantizedWeight:
    """Return the weight of `target`, an expert that read too few `tokens`, rounded to nearest."""
    start = time.perf_counter()
    weights = matrix(target.layer).chunk(groups(target.layer))
    packed = _packed(target, [nearest(weight, target.config) for weight in weights])
    least = target.config.min_expert_tokens
    reason = f"it read {tokens} tokens, fewer than {least} and than its peers, so rounded to nearest"
    return QuantizedWeight(packed, _line(target, {"tokens": tokens}, time.perf_counter() - start, reason))


def _packed(target: Target[GPTQConfig], solutions: list[Solution]) -> PackedWeight:
    """Return the weight whose groups of rows the `solutions` hold."""
    first = solutions[0]
    offsets = [solution.offset for solution in solutions if solution.offset is not None]
    return PackedWeight.from_codes(
        torch.cat([solution.codes for solution in solutions]),
        torch.cat([solution.scale for solution in solutions]),
        torch.cat([solution.zero_point for solution in solutions]),
        dtype=first.dtype,
        shape=shape(target.layer),
        group_size=first.group_size,
        group_index=first.group_index,
        offset=torch.cat(offsets) if offsets else None,
        super_block=target.config.super_block,
    )


def _line(target: Target[GPTQConfig], figures: dict[str, float], seconds: float, reason: str) -> LayerReport:
    numbers = tuple((name, float(value)) for name, value in figures.items())
    return attrs.evolve(outline_line(target), reason=reason, seconds=seconds, figures=numbers)
