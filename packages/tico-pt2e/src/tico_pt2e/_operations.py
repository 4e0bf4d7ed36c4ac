"""The operators of a graph that can be quantized, found by the table of patterns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import attrs
from torch import Tensor, fx

from tico_modules import child_path
from tico_pt2e._data_flow import data_nodes
from tico_pt2e._nodes import argument, is_float, module_of, node_argument, operator_of, value_of
from tico_pt2e._patterns import (
    ACTIVATION_FUNCTIONS,
    BEFORE_SOFTMAX,
    FILLING,
    PATTERNS,
    SPLITTING,
    Pattern,
    Result,
)


@attrs.frozen(eq=False, kw_only=True)
class Operation:
    """One operator of the graph with the activation function that is fused into it.

    `path` is its module's, with the node's name behind it where the module has several operators.
    """

    pattern: Pattern
    node: fx.Node
    last: fx.Node
    inputs: tuple[fx.Node, ...]
    weight: fx.Node | None
    path: str
    module: str
    module_type: str

    @property
    def label(self) -> str:
        """The operators, for reports."""
        parts = [operator_of(self.node)] + ([operator_of(self.last)] if self.last is not self.node else [])
        return " + ".join(parts)

    @property
    def weight_position(self) -> int:
        """The position of the weight among the arguments."""
        return 1 if self.pattern.weight is None else self.pattern.weight

    @property
    def shares(self) -> bool:
        """Whether the result has the grid of the first input."""
        return self.pattern.result is Result.SHARED


@attrs.frozen(eq=False)
class FoundOperations:
    """The operators that can be quantized, and how many of each other operator there are."""

    operations: tuple[Operation, ...]
    left: Counter[str]


def find_operations(graph: fx.Graph) -> FoundOperations:
    """Return the operators of `graph` that the table knows, in their order."""
    found: list[Operation] = []
    inner: set[fx.Node] = set()
    left: Counter[str] = Counter()
    data = data_nodes(graph)
    for node in graph.nodes:
        if node in inner or node.op != "call_function":
            continue
        if not is_float(node):
            left += _wide(node) + _several(node)
            continue
        pattern = _pattern(node)
        if pattern is None and operator_of(node) == "getitem":
            continue  # its source is counted
        if node not in data:
            left += _without_data(node, pattern)
            continue
        if pattern is None:
            left[_described(node)] += 1
            continue
        last = _last(node, pattern)
        inner.add(last)
        path, kind = module_of(node)
        found.append(
            Operation(
                pattern=pattern,
                node=node,
                last=last,
                inputs=tuple(_inputs(node, pattern)),
                weight=_weight(node, pattern),
                path=path,
                module=path,
                module_type=kind,
            )
        )
    return FoundOperations(tuple(_named(found)), left)


def _pattern(node: fx.Node) -> Pattern | None:
    operator = operator_of(node)
    if operator == "getitem":
        source = node_argument(node, 0)
        return PATTERNS["getitem"] if source is not None and operator_of(source) in SPLITTING else None
    if operator in FILLING and argument(node, FILLING[operator]) not in (None, 0, 0.0):
        return None  # only a zero is on every grid
    return None if _is_before_softmax(node) else PATTERNS.get(operator)


def _is_before_softmax(node: fx.Node) -> bool:
    readers = {operator_of(user) for user in node.users}
    return operator_of(node) in BEFORE_SOFTMAX and readers == {"softmax"}


def _without_data(node: fx.Node, pattern: Pattern | None) -> Counter[str]:
    """Return what to count for a node that no data reach: it computes, and neither makes nor moves values."""
    moves = pattern is not None and pattern.result is Result.SHARED
    computes = bool(node.all_input_nodes) and not moves
    return Counter([f"{operator_of(node)} of constants, positions or masks"] if computes else [])


def _wide(node: fx.Node) -> Counter[str]:
    """Return what to count for a node in a format that the operators of quantization do not take."""
    value = value_of(node)
    wide = value is not None and value.is_floating_point()
    return Counter({f"{operator_of(node)} in {value.dtype}": 1}) if wide and value is not None else Counter()


def _several(node: fx.Node) -> Counter[str]:
    """Return what to count for a node with several results, which no pattern knows grids for."""
    value: object = node.meta.get("val")
    results = value if isinstance(value, tuple | list) else ()
    floats = any(isinstance(each, Tensor) and each.is_floating_point() for each in results)
    return Counter([operator_of(node)] if floats and operator_of(node) not in SPLITTING else [])


def _described(node: fx.Node) -> str:
    operator = operator_of(node)
    return f"{operator} before softmax" if _is_before_softmax(node) else operator


def _last(node: fx.Node, pattern: Pattern) -> fx.Node:
    """Return the activation function that alone reads the result of `node`, else `node` itself."""
    users = list(node.users)
    fusing = pattern.fuses and len(users) == 1 and operator_of(users[0]) in ACTIVATION_FUNCTIONS
    return users[0] if fusing else node


def _inputs(node: fx.Node, pattern: Pattern) -> Iterator[fx.Node]:
    """Yield the distinct activations that `node` reads."""
    if operator_of(node) == "getitem":
        source = node_argument(node, 0)
        nodes = [] if source is None else source.all_input_nodes[:1]
    elif pattern.inputs is None:
        nodes = [found for found in node.all_input_nodes if found is not _weight(node, pattern)]
    else:
        nodes = [found for position in pattern.inputs if (found := node_argument(node, position))]
        if pattern.weight is not None and _weight(node, pattern) is None:
            computed = node_argument(node, pattern.weight)
            nodes += [computed] if computed is not None else []
    yield from dict.fromkeys(found for found in nodes if is_float(found))


def _weight(node: fx.Node, pattern: Pattern) -> fx.Node | None:
    """Return the constant that `node` takes as its weight; None where it has none or computes it."""
    if pattern.weight is None:
        return _constant_matrix(node) if pattern.operator in ("matmul", "mm") else None
    found = node_argument(node, pattern.weight)
    return found if found is not None and found.op == "get_attr" and is_float(found) else None


def _constant_matrix(node: fx.Node) -> fx.Node | None:
    """Return the second factor of a product if it is a constant matrix."""
    found = node_argument(node, 1)
    constant = found is not None and found.op == "get_attr"
    value: Tensor | None = value_of(found) if found is not None and constant else None
    return found if value is not None and value.ndim == 2 else None


def _named(found: list[Operation]) -> Iterator[Operation]:
    """Give the operators of modules with several operators, and of the root, the names of their nodes."""
    count = Counter(operation.path for operation in found if not operation.shares)
    for operation in found:
        alone = count[operation.path] == 1 and operation.path and not operation.shares
        yield (
            operation
            if alone
            else attrs.evolve(operation, path=child_path(operation.module, operation.node.name))
        )
