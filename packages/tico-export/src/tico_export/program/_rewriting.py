"""Programs changed as graphs: unlifted, rewritten, and exported again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias

from torch import Tensor, fx
from torch.export import ExportedProgram

from tico_export.program._exported import traced
from tico_export.protocol import Example

Pass: TypeAlias = Callable[[fx.GraphModule], None]
_COPIES: Final = ("alias", "clone", "detach", "lift_fresh_copy")
_METADATA: Final = "_assert_tensor_metadata"


def rewritten(program: ExportedProgram, example: Example, passes: Iterable[Pass]) -> ExportedProgram:
    """Return `program` with its graph changed by `passes`, and without tensors that nothing reads."""
    module = program.module(check_guards=False)
    if not isinstance(module, fx.GraphModule):
        raise TypeError(module)
    for each in passes:
        each(module)
        module.graph.eliminate_dead_code()
    used = {str(node.target): tensor_at(module, node) for node in _attributes(module)}
    changed = traced(fx.GraphModule(used, module.graph), example, type(module).__name__)
    _forget_places(changed)
    return changed


def _forget_places(program: ExportedProgram) -> None:
    """Drop where nodes came from: generated files and graphs, named by numbers that differ each time."""
    for module in program.graph_module.modules():
        for node in module.graph.nodes if isinstance(module, fx.GraphModule) else ():
            for name in ("stack_trace", "from_node"):
                node.meta.pop(name, None)


def _attributes(module: fx.GraphModule) -> list[fx.Node]:
    return [node for node in module.graph.nodes if node.op == "get_attr"]


def tensor_at(module: fx.GraphModule, node: fx.Node) -> Tensor:
    """Return what the node `get_attr` reads: a tensor, or the graph of a branch."""
    found: object = module
    for name in str(node.target).split("."):
        found = getattr(found, name)
    return found  # type: ignore[return-value]  # branches are passed on only


def operator_of(node: object) -> str:
    """Return the name of a node's operator without its overload; nothing for other nodes.

    >>> operator_of(None)
    ''
    """
    schema = getattr(getattr(node, "target", None), "_schema", None)
    return "" if schema is None else str(schema.name).rpartition("::")[2]


def input_of(node: fx.Node, position: int) -> fx.Node | None:
    """Return the node that stands at `position` among the arguments of `node`; None where none does."""
    found = node.args[position] if position < len(node.args) else None
    return found if isinstance(found, fx.Node) else None


def without_copies(module: fx.GraphModule) -> None:
    """Drop what copies a value, casts it to its own format, or checks its metadata."""
    for node in list(module.graph.nodes):
        source = input_of(node, 0)
        if operator_of(node) == _METADATA:
            module.graph.erase_node(node)
        elif source is not None and (operator_of(node) in _COPIES or _casts_to_itself(node, source)):
            node.replace_all_uses_with(source)
            module.graph.erase_node(node)


def _casts_to_itself(node: fx.Node, source: fx.Node) -> bool:
    before, after = source.meta.get("val"), node.meta.get("val")
    if operator_of(node) != "to" or not (isinstance(before, Tensor) and isinstance(after, Tensor)):
        return False
    return before.dtype == after.dtype and before.device == after.device
