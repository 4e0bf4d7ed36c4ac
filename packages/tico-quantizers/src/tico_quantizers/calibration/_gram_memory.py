"""How much memory Gram matrices take, and layers in parts that take no more than is allowed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Final

import torch

from tico_config import Problem
from tico_quantizers.layers import ExpertLinear, Layer, columns, groups

_PANEL: Final = 128
_WAITING_ROWS: Final = 2048


def gram_bytes(layer: Layer, *, paired: bool = False) -> int:
    """Return how many bytes what is kept of the inputs of `layer` takes at most, while a block is run.

    For c columns, twice as many if inputs are `paired`, these are the panels of 128 rows on and above the
    diagonal, 8 bytes a value or 4c² + 512c in all, and 2048 rows that wait to be multiplied.

    >>> from torch import nn
    >>> gram_bytes(nn.Linear(1024, 8)) == 4 * 1024**2 + 512 * 1024 + 4 * 2048 * 1024
    True
    """
    width = columns(layer) * (2 if paired else 1)
    triangle = sum(min(_PANEL, width - start) * (width - start) for start in range(0, width, _PANEL))
    return groups(layer) * (8 * triangle + _row_bytes(layer) * _WAITING_ROWS * width)


def _row_bytes(layer: Layer) -> int:
    stored = [layer.weight] if isinstance(layer, ExpertLinear) else list(layer.parameters())
    return 8 if any(each.dtype == torch.float64 for each in stored) else 4


def memory_problem(path: str, layer: Layer, most: int | None, *, paired: bool) -> Problem | None:
    """Return why the layer at `path` cannot be learned from within `most` bytes, or None."""
    needed = gram_bytes(layer, paired=paired)
    if most is None or needed <= most:
        return None
    return Problem(
        module=path,
        field="gram_memory",
        value=most,
        expected=f"at least {needed}, or None",
        sentence=f"what is kept of its inputs takes {needed:,} bytes, and gram_memory is {most:,}",
        remedy="allow more, or leave it out by an override",
    )


def parts_within(
    layers: Mapping[str, Layer],
    most: int | None,
    sharing: Callable[[], Collection[frozenset[str]]],
    *,
    paired: bool = False,
) -> list[tuple[str, ...]]:
    """Return the paths of `layers` in parts of which none takes more than `most` bytes.

    `sharing` tells who reads the same, and is asked only where one part would not do. Layers that do stay
    together, as they share a matrix.
    """
    sizes = {path: gram_bytes(layer, paired=paired) for path, layer in layers.items()}
    if most is None or sum(sizes.values()) <= most:
        return [tuple(layers)]
    shared = list(sharing())
    parts: list[list[str]] = []
    taken = most
    for unit in _units(layers, shared):
        own = {readers for readers in shared if readers <= unit} or {unit}
        size = sum(sizes[min(readers)] for readers in own)
        if taken + size > most:
            parts.append([])
            taken = 0
        parts[-1] += [path for path in layers if path in unit]
        taken += size
    return list(map(tuple, parts))


def _units(paths: Iterable[str], shared: Iterable[frozenset[str]]) -> list[frozenset[str]]:
    """Return the layers that stay together, in the order of the first of each."""
    units = {path: frozenset([path]) for path in paths}
    for readers in shared:
        together = frozenset().union(*(units[path] for path in readers))
        units |= dict.fromkeys(together, together)
    return list(dict.fromkeys(units.values()))
