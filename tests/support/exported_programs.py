"""What exported programs hold, and what they give in a process that knows nothing of this project."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import Node

_ELSEWHERE = """
import sys, torch
import torch.ao.quantization.fx._decomposed
program, inputs, output = sys.argv[1:]
found = torch.export.load(program).module()(*torch.load(inputs))
assert not [name for name in sys.modules if name.startswith("tico")]
torch.save(found, output)
"""


def grids_on_activations(program: ExportedProgram) -> int:
    """Return how many values are quantized; each has to be dequantized right away, and once."""
    made = [node for node in program.graph.nodes if _dialect_name(node).startswith("quantize")]
    for node in made:
        [user] = node.users
        assert _dialect_name(user) == f"de{_dialect_name(node)}"
        assert user.args[1:4] == node.args[1:4]
    return len(made)


def foreign_operators(program: ExportedProgram) -> list[str]:
    """Return the operators of `program` that come with this project, and not with torch."""
    return [str(node.target) for node in program.graph.nodes if str(node.target).startswith("tico")]


def _dialect_name(node: Node) -> str:
    space, _, name = str(node.target).partition(".")
    return name.partition(".")[0] if space == "quantized_decomposed" else ""


def output_elsewhere(program: ExportedProgram, inputs: tuple[Tensor, ...], folder: Path) -> Tensor:
    """Return what `program`, saved, gives in a process that imports torch and its operators only."""
    paths = [folder / name for name in ("program.pt2", "inputs.pt", "output.pt")]
    torch.export.save(program, paths[0])
    torch.save(inputs, paths[1])
    script = [sys.executable, "-W", "ignore", "-c", _ELSEWHERE]
    subprocess.run([*script, *map(str, paths)], check=True, env={"OMP_NUM_THREADS": "1"})
    output: Tensor = torch.load(paths[2])
    return output
