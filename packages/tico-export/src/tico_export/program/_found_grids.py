"""The grids of a converted model, wherever they stand: in layers, at points, in graphs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

import attrs
from torch import fx

from tico_config import (
    DType,
    Granularity,
    GridFormat,
    LayerFormat,
    NumberFormat,
    PerChannel,
    PerGroup,
    PerTensor,
)
from tico_export.program._rewriting import input_of, operator_of
from tico_export.source import Grid, QuantizedWeight, Source

Role = Literal["activation", "weight", "bias"]


@attrs.frozen(kw_only=True)
class FoundGrid:
    """A grid, and what stands on it.

    Attributes:
        path: the path of its module, or the name of its node in a graph.
        format: its codes, and what shares a scale.
        step: the scale of a fixed grid of an activation, the same for the whole tensor; else None.
    """

    path: str
    role: Role
    format: GridFormat
    step: float | None = None

    @property
    def dtype(self) -> NumberFormat:
        """The number format of a code."""
        return self.format.dtype

    @property
    def granularity(self) -> Granularity:
        """What shares a scale."""
        return self.format.granularity


def grids_in(source: Source) -> Iterator[FoundGrid]:
    """Yield the grids of `source`, those of layers first."""
    for path, weight in source.weights.items():
        yield FoundGrid(path=path, role="weight", format=weight.format)
        for name, grid in (("act_in", weight.act_in), ("act_out", weight.act_out)):
            if grid is not None:
                yield _of_activation(_below(path, name), grid)
    for path, grid in source.points.items():
        yield _of_activation(path, grid)
    for module in source.model.modules():
        if isinstance(module, fx.GraphModule):
            yield from _in_graph(module)


def formats_in(source: Source) -> tuple[list[LayerFormat], dict[str, GridFormat]]:
    """Return the layers of `source`, and the activations on a grid that no layer reads, by path.

    Of a graph it is not known which activation which weight meets.
    """
    layers = [_layer(path, weight) for path, weight in source.weights.items()]
    read = {_below(path, "act_in") for path in source.weights}
    points: dict[str, GridFormat] = {}
    for grid in grids_in(source):
        if grid.role == "activation" and grid.path not in read:
            points[grid.path] = grid.format
        elif grid.role == "weight" and grid.path not in source.weights:
            layers.append(LayerFormat(path=grid.path, weight=grid.format, inputs_known=False))
    return layers, points


def _layer(path: str, weight: QuantizedWeight) -> LayerFormat:
    return LayerFormat(
        path=path,
        kind=weight.kind.rpartition(".")[2],
        weight=weight.format,
        inputs=None if weight.act_in is None else weight.act_in.format,
        inputs_known=weight.kind != "embedding",
        rows=weight.shape[0],
        columns=weight.columns,
    )


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _of_activation(path: str, grid: Grid) -> FoundGrid:
    one = grid.scale is not None and grid.scale.numel() == 1
    step = grid.scale.item() if one and grid.scale is not None else None
    return FoundGrid(path=path, role="activation", format=grid.format, step=step)


def _in_graph(module: fx.GraphModule) -> Iterator[FoundGrid]:
    for node in module.graph.nodes:
        source, low, high = input_of(node, 0), *_limits(node)
        if source is None or low is None or high is None:
            continue
        held = source.op == "get_attr"
        bits = (high - low).bit_length()
        role: Role = "activation" if not held else ("bias" if bits > 16 else "weight")
        step = node.args[1]
        dtype = DType.int(min(bits, 16)) if low < 0 else DType.uint(bits)
        yield FoundGrid(
            path=node.name,
            role=role,
            format=GridFormat(dtype=dtype, granularity=_unit(node)),
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
