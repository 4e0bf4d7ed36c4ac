"""Weights in a model of ONNX: turned as products read them, and in as few bits as hold their codes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Final, Protocol

import torch

from tico_export.protocol import require_extra

_NARROW: Final = {"int8": ("INT4", -8, 7), "uint8": ("UINT4", 0, 15)}


class Array(Protocol):
    """An array of numpy."""

    @property
    def T(self) -> Array:  # noqa: N802  # numpy's own name
        """The array with its axes turned."""

    @property
    def dtype(self) -> object:
        """Its format."""

    def min(self) -> int:
        """Return the smallest value."""

    def max(self) -> int:
        """Return the largest value."""

    def astype(self, dtype: object) -> Array:
        """Return it in another format."""

    def copy(self) -> Array:
        """Return a contiguous copy."""


class Tensor(Protocol):
    """What an initializer holds."""

    def numpy(self) -> Array:
        """Return it as an array."""


class Value(Protocol):
    """A value of a graph of ONNX."""

    name: str
    const_value: Tensor | None
    shape: Iterable[object] | None

    def uses(self) -> tuple[object, ...]:
        """Return who reads it."""

    def producer(self) -> Node | None:
        """Return what makes it."""

    def replace_all_uses_with(self, other: Value) -> None:
        """Have them read another value."""


class Node(Protocol):
    """A node of a graph of ONNX."""

    op_type: str
    inputs: tuple[Value | None, ...]
    outputs: tuple[Value, ...]
    attributes: dict[str, object]

    def replace_input_with(self, index: int, value: Value) -> None:
        """Read another value."""


class Graph(Protocol):
    """A graph of ONNX, as onnx-ir has it."""

    initializers: dict[str, Value]
    inputs: list[Value]
    outputs: list[Value]

    def __reversed__(self) -> reversed[Node]:
        """Yield the nodes from the last."""

    def register_initializer(self, value: Value) -> None:
        """Take another tensor in."""

    def remove(self, node: Node, safe: bool = False) -> None:
        """Drop a node."""

    def insert_before(self, node: Node, new: Node) -> None:
        """Put a node before another one."""


def arrange_weights(graph: Graph, *, share: bool) -> None:
    """Turn weights that the graph turns, and keep codes of weights in groups in 4 bits where they fit.

    With `share`, a weight that is a table of embeddings as well stays as the table is, and is turned where it
    is read, which a runtime does as it loads the file.
    """
    ir = require_extra("onnx_ir", "onnx")
    nodes = list(reversed(graph))[::-1]
    makers = {id(node.outputs[0]): node for node in nodes}
    tables = [node.inputs[0] for node in nodes if node.op_type == "Gather" and share]
    for node in nodes:
        if node.op_type == "DequantizeLinear":
            _fold_casts(ir, graph, node, makers)
    for node in nodes:
        source = node.inputs[0] if node.op_type == "Transpose" else None
        maker = makers.get(id(source)) if source is not None else None
        if source is not None and maker is not None and _can_turn(maker, source):
            _turn(ir, graph, maker, tables)
            node.outputs[0].replace_all_uses_with(source)
            graph.remove(node, safe=True)
    for node in nodes:
        if node.op_type == "DequantizeLinear":
            _own_zeros(ir, graph, node)
            if "block_size" in node.attributes:
                _narrow(ir, graph, node)
    _drop_unread(graph)


def _fold_casts(ir: ModuleType, graph: Graph, node: Node, makers: Mapping[int, Node]) -> None:
    """Cast constants that `node` reads, which torch leaves to the graph where they are large."""
    for index, value in enumerate(node.inputs):
        maker = makers.get(id(value))
        source = None if maker is None or maker.op_type != "Cast" else maker.inputs[0]
        if maker is None or source is None or source.const_value is None:
            continue
        dtype = ir.DataType(getattr(maker.attributes["to"], "value", 0))
        _put(ir, graph, node, index, "cast", source.const_value.numpy().astype(dtype.numpy()), dtype)
        if not maker.outputs[0].uses():
            graph.remove(maker, safe=True)


def _can_turn(node: Node, result: Value) -> bool:
    held = [each for each in node.inputs if each is not None]
    constant = all(each.const_value is not None for each in held)
    return node.op_type == "DequantizeLinear" and constant and len(result.uses()) == 1


def _turn(ir: ModuleType, graph: Graph, node: Node, tables: Iterable[Value | None]) -> None:
    """Turn the two axes of what `node` dequantizes, which may be one of `tables`."""
    axis = getattr(node.attributes["axis"], "value", 1)
    blocks = "block_size" in node.attributes
    node.attributes["axis"] = ir.AttrInt64("axis", 1 - axis)
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is None or not (index == 0 or blocks):
            continue
        table = next((each for each in tables if index == 0 and _same(each, value)), None)
        if table is not None:
            _read_turned(ir, graph, node, table)
        else:
            _put(ir, graph, node, index, "turned", value.const_value.numpy().T.copy())
    shape = node.outputs[0]
    if shape.shape is not None:
        shape.shape = ir.Shape(list(shape.shape)[::-1])


def _same(table: Value | None, value: Value) -> bool:
    """Whether two constants have the same codes."""
    if table is None or table.const_value is None or value.const_value is None or table is value:
        return table is value
    one, other = table.const_value.numpy(), value.const_value.numpy()
    return one.dtype == other.dtype and torch.equal(torch.as_tensor(one), torch.as_tensor(other))


def _read_turned(ir: ModuleType, graph: Graph, node: Node, table: Value) -> None:
    """Have `node` read `table` with its axes turned."""
    turn: Node = ir.node("Transpose", [table], {"perm": [1, 0]})
    turn.outputs[0].name = f"{table.name}_turned"
    graph.insert_before(node, turn)
    node.replace_input_with(0, turn.outputs[0])


def _own_zeros(ir: ModuleType, graph: Graph, node: Node) -> None:
    """Give a weight zero points of its own where another one has the same.

    ONNX Runtime 1.32 fails to load a model of which two weights share theirs, on processors without VNNI.
    """
    weight, zeros = node.inputs[0], node.inputs[2] if len(node.inputs) > 2 else None
    if weight is None or zeros is None or zeros.const_value is None or not _is_held(weight):
        return
    if len(zeros.uses()) > 1:
        _put(ir, graph, node, 2, f"of_{weight.name}", zeros.const_value.numpy().copy())


def _is_held(value: Value) -> bool:
    """Whether `value` is a constant, or a constant that was turned."""
    maker = value.producer()
    first = None if maker is None or maker.op_type != "Transpose" else maker.inputs[0]
    return value.const_value is not None or (first is not None and first.const_value is not None)


def _narrow(ir: ModuleType, graph: Graph, node: Node) -> None:
    """Keep the codes and zero points that `node` reads in 4 bits, where all of them fit."""
    held = {index: value for index, value in enumerate(node.inputs) if index != 1}
    arrays = {
        index: value.const_value.numpy()
        for index, value in held.items()
        if value is not None and value.const_value is not None
    }
    known = _NARROW.get(str(arrays[0].dtype)) if 0 in arrays else None
    if known is None or len(arrays) != len(held):
        return
    name, low, high = known
    if all(low <= each.min() and each.max() <= high for each in arrays.values()):
        dtype = ir.DataType[name]
        for index, array in arrays.items():
            _put(ir, graph, node, index, "int4", array.astype(dtype.numpy()), dtype)


def _put(
    ir: ModuleType, graph: Graph, node: Node, index: int, what: str, array: Array, dtype: object = None
) -> None:
    """Have `node` read a new initializer."""
    before = node.inputs[index]
    name = f"{'' if before is None else before.name}_{what}"
    if name not in graph.initializers:
        tensor = ir.Tensor(array, dtype=dtype, name=name) if dtype else ir.tensor(array, name=name)
        value = ir.Value(name=name, const_value=tensor, shape=tensor.shape, type=ir.TensorType(tensor.dtype))
        graph.register_initializer(value)
    node.replace_input_with(index, graph.initializers[name])


def _drop_unread(graph: Graph) -> None:
    for name in [name for name, value in graph.initializers.items() if not value.uses()]:
        del graph.initializers[name]
