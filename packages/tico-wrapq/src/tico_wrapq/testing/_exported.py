"""What an exported program does to the data that are passed in."""

from __future__ import annotations

from torch.export import ExportedProgram
from torch.fx import Node


def operators_on_data(program: ExportedProgram) -> list[str]:
    """Return the operators in `program` whose result depends on what the user passes in."""
    users = {name for name in program.graph_signature.user_inputs if isinstance(name, str)}
    reached: set[Node] = {node for node in program.graph.nodes if node.name in users}
    found = []
    for node in program.graph.nodes:
        if node.op == "call_function" and any(argument in reached for argument in node.all_input_nodes):
            reached.add(node)
            found.append(str(node.target))
    return found


def casts_among(operators: list[str]) -> list[str]:
    """Return those that change a dtype or check something."""
    return [name for name in operators if "assert" in name or name.startswith(("aten.to.", "aten._to_copy"))]
