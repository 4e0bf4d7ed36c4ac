"""How near a runtime with integer kernels has to come to a model, and what that follows from."""

from __future__ import annotations

import math

import attrs

from tico_config import FloatFormat, NumberFormat, PerGroup
from tico_export.program._found_grids import FoundGrid, grids_in
from tico_export.source import Source

_CREST = 8  # the range of a grid over the root mean square of what is on it
_FLOAT = 80.0  # sums of float32 in another order: 2 ** -24 a term, over some hundreds of terms in a chain


@attrs.frozen
class Bound:
    """The least signal-to-noise ratio in dB, why it is that, and the steps of all grids of activations."""

    smallest_sqnr: float
    why: str
    steps: tuple[float, ...] = ()


def kernel_bound(source: Source, *, block_codes: bool = False) -> Bound:
    """Return the bound of kernels that sum integers exactly and apply scales in an order of their own.

    A value near the middle of two codes then goes to either side: a step of its grid. One step of every value
    is ``20 log10(steps / 8)`` dB below values whose root mean square is an eighth of the grid's range. A
    floating-point element has steps of its own, at most ``2 ** -mantissa bits`` of it. Each layer adds its
    own, which is ``10 log10(layers)`` dB less.

    With `block_codes`, inputs of weights in groups become 8 bits for each block of columns. Rounding has a
    noise of a twelfth of a squared step, a step is the largest value over 127, and that is at most
    ``sqrt(block)`` times the root mean square: ``10 log10(12 * 127 ** 2 / block)`` dB, less the number of
    such layers, each of which adds its own.
    """
    grids = list(grids_in(source))
    bounds = [Bound(_FLOAT, "sums of floats in another order")]
    steps_of_values = [steps_in(each.dtype) for each in grids if each.role == "activation"]
    if steps_of_values:
        layers = max(1, sum(each.role == "weight" for each in grids))
        reach = 20 * math.log10(min(steps_of_values)) - 10 * math.log10(layers)
        bounds.append(Bound(min(reach, _FLOAT), "scales applied in another order move values by a step"))
    blocks = [size for each in grids if (size := _block_of(each)) is not None]
    if block_codes and blocks:
        noise = 10 * math.log10(12 * 127**2 / max(blocks)) - 10 * math.log10(len(blocks))
        bounds.append(Bound(noise, "its kernels round the inputs of weights in blocks to 8 bits"))
    steps = tuple(sorted({each.step for each in grids if each.step is not None}))
    return attrs.evolve(min(bounds, key=lambda each: each.smallest_sqnr), steps=steps)


def steps_in(dtype: NumberFormat) -> float:
    """Return the root mean square of values on a grid in steps of it; an element in steps of its own."""
    if isinstance(dtype, FloatFormat):
        return math.ldexp(1.0, dtype.encoding.mantissa_bits)
    return (math.ldexp(1.0, dtype.bits) - 1) / _CREST


def _block_of(grid: FoundGrid) -> int | None:
    """Return the columns that share a scale of a weight of at most 4 bits, 128 where whole rows do."""
    if grid.role != "weight" or grid.dtype.bits > 4:
        return None
    return grid.granularity.size if isinstance(grid.granularity, PerGroup) else 128


def rounding_bound(source: Source, eps: float, why: str) -> Bound:
    """Return how near outputs come where each layer's weights are moved by a share of `eps`.

    The errors of layers are independent, so that their powers add up. `why` says what rounds.
    """
    layers = max(1, len(source.weights))
    return Bound(-20 * math.log10(eps) - 10 * math.log10(layers), why)
