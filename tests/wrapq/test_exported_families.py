"""Models of transformers in torch.export: as many pairs of nodes as there are points."""

from __future__ import annotations

from collections import Counter
from typing import TypeAlias

import pytest
import torch
from torch import nn
from torch.export import ExportedProgram

from exported_programs import grids_on_activations
from gptq_definition import Batch
from model_families import FAMILIES
from tico.quantization import PTQConfig, convert, prepare
from tico_modules import ActivationGrid
from tico_wrapq import coverage

# A loop over tokens is written out by torch.export: jamba is left out, and Loop has one.
FAST = ("bart", "bert", "convnext", "resnet")

Grid: TypeAlias = tuple[float, int]


class Loop(nn.Module):
    """A product that is added up over three passes of a loop."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the sum."""
        total = torch.zeros_like(x)
        for number in range(3):
            total = total + x * (number + 1.0)
        return total


def with_padding(batch: Batch) -> dict[str, object]:
    """Return `batch` without a cache, and with a mask where there are tokens: export adds masks to all."""
    given: dict[str, object] = dict(batch)
    tokens = given.get("input_ids")
    if isinstance(tokens, torch.Tensor):
        mask = torch.ones_like(tokens)
        mask[0, -2:] = 0
        given |= {"attention_mask": mask, "use_cache": False}
    return given


def grids_of(model: nn.Module) -> dict[str, Grid]:
    """Return the grid of each point by its path."""
    found = ((path, each) for path, each in model.named_modules() if isinstance(each, ActivationGrid))
    return {path: (float(each.scale), int(each.zero_point)) for path, each in found}


def grids_in(program: ExportedProgram) -> Counter[Grid]:
    """Return the grids of all nodes that quantize an activation, as often as there are."""
    names = ((str(node.target), node.args) for node in program.graph.nodes)
    made = (args for name, args in names if name.startswith("quantized_decomposed.quantize_per_tensor"))
    return Counter((float(str(args[1])), int(str(args[2]))) for args in made)


@pytest.mark.parametrize("name", FAST)
def test_each_point_is_one_pair_of_nodes(name: str) -> None:
    """Named are points without one, and grids of nodes that no point has, or more often than points do."""
    model, batches = FAMILIES[name]()
    given = [with_padding(batch) if isinstance(batch, dict) else batch for batch in batches]
    if (switch := getattr(model, "set_attn_implementation", None)) is not None:
        switch("eager")
    prepared = prepare(model, PTQConfig(strict_wrap=False, on_uncalibrated="skip"))
    with torch.no_grad():
        for batch in given:
            prepared(**batch) if isinstance(batch, dict) else prepared(batch)
        model, first = convert(prepared), given[0]
        args, named = ((), first) if isinstance(first, dict) else ((first,), {})
        program = torch.export.export(model, args, named, strict=False)
    points, nodes = grids_of(model), grids_in(program)
    lacking = [path for path, grid in points.items() if grid not in nodes]
    assert not lacking
    assert nodes == Counter(points.values())
    static = [point for line in coverage(model).lines for point in line.points if point.endswith("static")]
    assert len(static) == len(points) == grids_on_activations(program)


def test_a_step_in_a_loop_is_one_point_and_a_pair_for_each_pass() -> None:
    """As a program has no loops."""
    x = torch.linspace(-1, 1, 8)
    prepared = prepare(Loop().eval(), PTQConfig())
    prepared(x)
    model = convert(prepared)
    nodes = grids_in(torch.export.export(model, (x,), strict=False))
    assert nodes == Counter(dict.fromkeys(grids_of(model).values(), 3))
