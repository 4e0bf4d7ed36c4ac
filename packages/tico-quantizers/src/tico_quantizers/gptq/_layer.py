"""One layer quantized: its weight as codes, and what there is to say about it."""

from __future__ import annotations

import math
import time

import attrs
import torch
from torch import Tensor

from tico_config import DType, TicoError
from tico_quantizers._calibration.grouped_gram import GroupedGram
from tico_quantizers._calibration.input_grams import located
from tico_quantizers._modules.packed_weight import PackedWeight
from tico_quantizers._report import LayerReport
from tico_quantizers._weight_view import Layer, columns, groups, matrix, shape
from tico_quantizers.gptq._core import Solution, nearest, solve
from tico_quantizers.gptq._plan import Target

# Products over at most 512 terms do not depend on the thread count.
_PRODUCT_TERMS = 512


@attrs.frozen(eq=False)
class QuantizedWeight:
    """The codes of a layer's weight, and the line of the report about them."""

    packed: PackedWeight
    line: LayerReport


def solved(target: Target, gram: GroupedGram) -> QuantizedWeight:
    """Return the weight of `target` rounded with feedback by what it has read.

    Raises:
        TicoError: the solver refuses the weight or the data; with the path of the layer.
    """
    start = time.perf_counter()
    weights = matrix(target.layer).chunk(groups(target.layer))
    hessians, drifts = _matrices(target, gram)
    pairs = list(zip(weights, hessians, strict=True))
    try:
        solutions = [
            solve(weight, hessian, target.config, cross_gram=drift)
            for (weight, hessian), drift in zip(pairs, drifts, strict=True)
        ]
    except TicoError as error:
        raise located(error, target.path) from None
    packed = _packed(target.layer, solutions)
    seconds = time.perf_counter() - start
    rounded = sum(
        quadratic_loss(weight - nearest(weight, target.config, hessian.diagonal()).dequantize(), hessian)
        for weight, hessian in pairs
    )
    figures = {
        "loss": sum(solution.loss for solution in solutions),
        "loss if rounded to nearest": rounded,
        "damping": max(solution.damping for solution in solutions),
        "dead columns": sum(solution.dead_columns for solution in solutions),
        "tokens": gram.rows,
        "effective tokens": gram.effective_rows,
    }
    hopeless = any(solution.rounded_only for solution in solutions)
    reason = "no damping sufficed, so rounded to nearest" if hopeless else ""
    return QuantizedWeight(packed, _line(target, figures, seconds, reason))


def rounded(target: Target, tokens: int) -> QuantizedWeight:
    """Return the weight of `target`, an expert that read too few `tokens`, rounded to nearest."""
    start = time.perf_counter()
    weights = matrix(target.layer).chunk(groups(target.layer))
    packed = _packed(target.layer, [nearest(weight, target.config) for weight in weights])
    least = target.config.min_expert_tokens
    reason = f"an expert that read {tokens} tokens, fewer than {least}, so rounded to nearest"
    return QuantizedWeight(packed, _line(target, {"tokens": tokens}, time.perf_counter() - start, reason))


def quadratic_loss(error: Tensor, gram: Tensor) -> float:
    """Return tr(E H Eᵀ) for an error E (rows, columns), float32, and H (columns, columns).

    >>> quadratic_loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    7.0
    """
    # In units near the largest input, since its square may be beyond float32.
    unit = math.ldexp(1.0, math.frexp(float(gram.diagonal().max()))[1])
    hessian = (gram / unit).to(torch.float32)
    moved = torch.zeros_like(error)
    for low in range(0, error.shape[1], _PRODUCT_TERMS):
        high = low + _PRODUCT_TERMS
        moved.addmm_(error[:, low:high], hessian[low:high])
    return float(moved.mul_(error).sum(1, dtype=torch.float64).sum()) * unit


def _matrices(target: Target, gram: GroupedGram) -> tuple[list[Tensor], list[Tensor | None]]:
    """Return H of each group, and the share of (X̃ - X)ᵀ X that is to be made up for where it is known."""
    whole, size = [part.matrix() for part in gram.parts], columns(target.layer)
    if len(whole[0]) == size:
        return whole, [None] * len(whole)
    share = target.config.asymmetric
    return [each[size:, size:] for each in whole], [each[:size, size:] * share for each in whole]


def _packed(layer: Layer, solutions: list[Solution]) -> PackedWeight:
    """Return the weight whose groups of rows the `solutions` hold."""
    first = solutions[0]
    return PackedWeight.from_codes(
        torch.cat([solution.codes for solution in solutions]),
        torch.cat([solution.scale for solution in solutions]),
        torch.cat([solution.zero_point for solution in solutions]),
        dtype=first.dtype,
        shape=shape(layer),
        group_size=first.group_size,
        group_index=first.group_index,
    )


def _line(target: Target, figures: dict[str, float], seconds: float, reason: str) -> LayerReport:
    config = target.config
    row = "per tensor" if config.per_tensor else "per row"
    unit = row if config.group_size is None else f"group {config.group_size}"
    scheme = "symmetric" if config.symmetric else "asymmetric"
    grid = getattr(target.layer, "act_in", None)
    return LayerReport(
        path=target.path,
        module=type(target.layer).__name__,
        algorithm="gptq",
        weight=f"{DType(config.bits, signed=config.symmetric)} {scheme} {unit}",
        activation="float" if grid is None else grid.label,
        reason=reason,
        bits=config.bits,
        group_size=config.group_size,
        seconds=seconds,
        figures=tuple((name, float(value)) for name, value in figures.items()),
    )
