"""What a layer will be, as config and shape tell: its line of a report, and a weight without values."""

from __future__ import annotations

from typing import TypeVar

from tico_config import FloatFormat, GridFormat, ModuleConfig, PerGroup, PerTensor, Problem, UnsupportedError
from tico_modules import LayerReport, PlannedWeight
from tico_quantizers.layers._matrix import shape
from tico_quantizers.layers._plan import Target
from tico_quantizers.layers._replacement import QuantizedWeight

C = TypeVar("C", bound=ModuleConfig)


def outline(target: Target[C]) -> QuantizedWeight:
    """Return the weight that `target` is to get, without values, and its line of a report, without figures.

    Both follow from the `weight_format` of its config.

    Raises:
        UnsupportedError: the config does not say which format its weights get.

    >>> from torch import nn
    >>> from tico_config import GPTQConfig
    >>> weight = outline(Target("fc", nn.Linear(64, 2), GPTQConfig(group_size=32)))
    >>> weight.line.weight, weight.packed.bytes
    ('uint4 asymmetric group 32', 96)
    """
    packed = PlannedWeight.of(shape(target.layer), _grid(target))
    return QuantizedWeight(packed, outline_line(target))


def outline_line(target: Target[C]) -> LayerReport:
    """Return the line of a report about `target`, without what only the data tell.

    Raises:
        UnsupportedError: the config does not say which format its weights get.
    """
    grid = _grid(target)
    inputs = getattr(target.layer, "act_in", None)
    scheme = "" if isinstance(grid.dtype, FloatFormat) else " symmetric" if grid.symmetric else " asymmetric"
    return LayerReport(
        path=target.path,
        module=type(target.layer).__name__,
        algorithm=target.config.name,
        weight=f"{grid.dtype}{scheme} {_unit(grid)}",
        activation="float" if inputs is None else inputs.label,
        bits=grid.dtype.bits,
        group_size=grid.granularity.size if isinstance(grid.granularity, PerGroup) else None,
    )


def _unit(grid: GridFormat) -> str:
    match grid.granularity:
        case PerTensor():
            return "per tensor"
        case PerGroup(size=size):
            shared = "" if grid.super_block is None else f", {grid.super_block}"
            return f"group {size}{shared}"
        case _:
            return "per row"


def _grid(target: Target[C]) -> GridFormat:
    grid = target.config.weight_format()
    if grid is None:
        name = type(target.config).__name__
        raise UnsupportedError(
            Problem(
                module=target.path,
                field="weight_format",
                value=None,
                expected="the format that its weight gets",
                sentence=f"{name} does not say which format its weights get, so that there is no plan",
                remedy=f"define weight_format in {name}, or outline in its quantizer",
            )
        )
    return grid
