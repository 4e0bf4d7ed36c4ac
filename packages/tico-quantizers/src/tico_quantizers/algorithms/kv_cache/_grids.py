"""Fixed grids of keys and values from the ranges that were seen."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tico_config import Found, KVCacheConfig, PerTensor, Problem, QuantSpec
from tico_modules import over_units
from tico_observers import AffineParams, params_from_range
from tico_quantizers.algorithms.kv_cache._recorder import PARTS, Ranges, Seen


def static_grids(
    layer: int, path: str, config: KVCacheConfig, seen: Seen
) -> tuple[tuple[AffineParams | None, AffineParams | None], list[Problem]]:
    """Return the grids of keys and of values of a layer, and what is wrong with what was seen of it.

    A layer that saw nothing is wrong, and so is a grid whose values were all 0: its scale would be 0.
    """
    grids: list[AffineParams | None] = []
    problems: list[Problem] = []
    for part, spec in zip(PARTS, (config.key_spec(), config.value_spec()), strict=True):
        ranges = seen.get((layer, part))
        needed = config.static and spec.is_quantized
        found = list(_problems(path, part, spec, ranges)) if needed else []
        problems += found
        grids.append(_grid(spec, ranges) if needed and ranges is not None and not found else None)
    return (grids[0], grids[1]), problems


def _grid(spec: QuantSpec, ranges: Ranges) -> AffineParams:
    low = over_units(ranges.low, spec, largest=False)
    high = over_units(ranges.high, spec, largest=True)
    return params_from_range(low, high, spec.dtype, symmetric=spec.is_symmetric, granularity=PerTensor())


def _problems(path: str, part: str, spec: QuantSpec, ranges: Ranges | None) -> Iterator[Problem]:
    if ranges is None:
        yield Problem(
            module=path,
            field=f"{part}s",
            value=Found("none"),
            expected="calibration data for each head",
            sentence=f"no calibration data gave {part}s to any of its heads",
            remedy="run text through the prepared model, or set static=False",
        )
        return
    widest: Tensor = over_units(ranges.low.abs().maximum(ranges.high.abs()), spec, largest=True)
    empty = (widest == 0).nonzero().tolist()
    for head, _, channel in empty[:3]:
        where = f"head {head}" if widest.shape[0] > 1 else "all heads"
        where += f", channel {channel}" if widest.shape[2] > 1 else ""
        yield Problem(
            module=path,
            field=f"{part}s of {where}",
            value=Found("0 for every token"),
            expected="a value that is not 0, for a scale",
            sentence=f"the {part}s of {where} are 0 for every token seen, so that their scale would be 0",
            remedy="run more text through the prepared model, or leave the layer out by an override",
        )


def placeholder_grids(config: KVCacheConfig) -> tuple[AffineParams | None, AffineParams | None]:
    """Return grids that stand for those that data will give, for a plan."""
    specs = config.key_spec(), config.value_spec()
    key, value = (_one(spec) if config.static and spec.is_quantized else None for spec in specs)
    return key, value


def _one(spec: QuantSpec) -> AffineParams:
    one = torch.ones(1, 1, 1)
    return params_from_range(-one, one, spec.dtype, symmetric=spec.is_symmetric, granularity=PerTensor())
