"""Weights as integers, on the grid that a spec asks for."""

from __future__ import annotations

from typing import Final

from torch import Tensor

from tico_config import (
    Found,
    Granularity,
    GridFormat,
    PerChannel,
    PerGroup,
    Problem,
    QuantSpec,
    UnsupportedError,
)
from tico_modules import PackedWeight, PlannedWeight, child_path
from tico_observers import Observer, observer_for
from tico_wrapq.base._declaration import PointDeclaration, Role, spec_problem

_PER_ROW: Final = PerChannel(0)
WEIGHT: Final = PointDeclaration("weight", Role.WEIGHT, _PER_ROW)


def pack_weight(
    weight: Tensor, spec: QuantSpec, path: str, default: Granularity = _PER_ROW, name: str = "weight"
) -> PackedWeight:
    """Return `weight` rounded to nearest on the grid of `spec`, by default with the granularity `default`.

    A weight on the meta device, as in a plan, gets no codes. `path` of the module and `name` of the weight
    are for errors.

    Raises:
        UnsupportedError: the spec's granularity or format is none that integer weights have.
        NumericsError: the weight holds NaN or infinity.
    """
    point = child_path(path, name)
    observer = observer_for(spec, point, default)
    problem = spec_problem(point, WEIGHT, spec)
    if problem is not None or not isinstance(observer, Observer):
        found = Found(str(spec))
        raise UnsupportedError(
            Problem(module=point, field="spec", value=found, expected="an integer grid that weights can have")
        )
    grid = GridFormat.of(spec, default)
    if weight.is_meta and grid is not None:
        return PlannedWeight.of(tuple(weight.shape), grid)
    observer.collect(weight.detach().flatten(1))
    granularity = spec.granularity_or(default)
    size = granularity.size if isinstance(granularity, PerGroup) else None
    return PackedWeight.on_grid(weight, observer.params, group_size=size)
