"""The grids of a converted model, wherever they stand: in layers, at points, in graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
from torch import fx

from tico_config import DType, Granularity, PerChannel, PerGroup, PerTensor
from tico_export.program._rewriting import input_of, operator_of
from tico_export.source import Grid, IntegerWeight, Source

Role = Literal["activation", "weight", "bias"]


@attrs.frozen(kw_only=True)
class FoundGrid:
    """A grid, and what stands on it.

    Attributes:
        path: the path of its module, or the name of its node in a graph.
        symmetric: whether all zero points are in the middle; None where it is not known.
        uneven: whether the columns of a group are no neighbours, or groups are of different sizes.
        alone: whether it is a weight whose input stays in float.
        step: the scale of a fixed grid of an activation, the same for the whole tensor; else None.
    """

    path: str
    role: Role
    dtype: DType
    granularity: Granularity
    symmetric: bool | None = None
    uneven: bool = False
    alone: bool = False
    step: float | None = None


def grids_in(source: Source) -> Iterator[FoundGrid]:
    """Yield the grids of `source`, those of layers first."""
    for path, weight in source.weights.items():
        yield _of_weight(path, weight)
        for name, grid in (("act_in", weight.act_in), ("act_out", weight.act_out)):
            if grid is not None:
                yield _of_activation(f"{path}.{name}" if path else name, grid)
    for path, grid in source.points.items():
        yield _of_activation(path, grid)
    for module in source.model.modules():
        if isinstance(module, fx.GraphModule):
            yield from _in_graph(module)


def _of_weight(path: str, weight: IntegerWeight) -> FoundGrid:
    size = weight.group_size
    return FoundGrid(
        path=path,
        role="weight",
        dtype=weight.dtype,
        granularity=PerChannel(0) if size is None else PerGroup(1, size),
        symmetric=weight.is_symmetric,
        uneven=weight.group_index is not None or bool(weight.columns % (size or 1)),
        alone=weight.act_in is None and weight.kind != "embedding",
    )


def _of_activation(path: str, grid: Grid) -> FoundGrid:
    one = grid.scale is not None and grid.scale.numel() == 1
    return FoundGrid(
        path=path,
        role="activation",
        dtype=grid.dtype,
        granularity=grid.granularity,
        step=grid.scale.item() if one and grid.scale is not None else None,
    )


def _in_graph(module: fx.GraphModule) -> Iterator[FoundGrid]:
    for node in module.graph.nodes:
        source, low, high = input_of(node, 0), *_limits(node)
        if source is None or low is None or high is None:
            continue
        held = source.op == "get_attr"
        bits = (high - low).bit_length()
        role: Role = "activation" if not held else ("bias" if bits > 16 else "weight")
        step = node.args[1]
        yield FoundGrid(
            path=node.name,
            role=role,
            dtype=DType.int(min(bits, 16)) if low < 0 else DType.uint(bits),
            granularity=_unit(node),
            step=step if role == "activation" and isinstance(step, float) else None,
        )


def _limits(node: fx.Node) -> tuple[int | None, int | None]:
    positions = {"dequantize_per_tensor": 3, "dequantize_per_channel": 4, "dequantize_per_channel_group": 3}
    start = positions.get(operator_of(node))
    if start is None:
        return None, None
    low, high = node.args[start : start + 2]
    return (low, high) if isinstance(low, int) and isinstance(high, int) else (None, None)


def _unit(node: fx.Node) -> Granularity:
    name, axis = operator_of(node), node.args[3]
    if name == "dequantize_per_channel":
        return PerChannel(axis if isinstance(axis, int) else 0)
    size = node.args[6] if name == "dequantize_per_channel_group" else None
    return PerGroup(1, size) if isinstance(size, int) else PerTensor()
