"""Operators that are made of others: taken apart, so that what they are made of can be quantized."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor
from torch.export import ExportedProgram

from tico_pt2e._nodes import operator_of
from tico_pt2e._patterns import PATTERNS, SPLITTING

Table: TypeAlias = Mapping[object, object]
"""Operators, and what computes the same by others; torch's own types for both hold `Any`."""

_WHOLE: Final = frozenset({"lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell"})
"""What would become a step for every token of the example."""


def take_apart(program: ExportedProgram, decompositions: Table) -> ExportedProgram:
    """Return `program` with the operators of `decompositions` taken apart, and those made of others.

    Only operators that no pattern knows are taken apart, so that what they are made of may be known.
    """
    table = {**_composites(program), **decompositions}
    tried: set[object] = set()
    while not tried.issuperset(table):  # some, such as the size of a free axis, stay what they are
        tried.update(table)
        program = program.run_decompositions(table)
        table = _composites(program)
    return program


def _composites(program: ExportedProgram) -> dict[object, object]:
    every = torch.export.default_decompositions()
    found: dict[object, object] = {}
    for node in program.graph.nodes:
        name, target = operator_of(node), node.target
        known = name in PATTERNS or name in SPLITTING or name in _WHOLE
        if known or not isinstance(target, torch._ops.OpOverload):
            continue
        if name in _RENAMED:
            found[target] = _RENAMED[name]
        elif target._can_decompose() and target in every:
            found[target] = every[target]
    return found


def _clip(x: Tensor, least: float | None = None, most: float | None = None) -> Tensor:
    return torch.clamp(x, least, most)


def _clamp_max(x: Tensor, most: float) -> Tensor:
    return torch.clamp(x, max=most)


def _square(x: Tensor) -> Tensor:
    return x * x


def _mv(x: Tensor, vector: Tensor) -> Tensor:
    return torch.matmul(x, vector.unsqueeze(-1)).squeeze(-1)


def _dot(x: Tensor, other: Tensor) -> Tensor:
    return torch.matmul(x.unsqueeze(0), other.unsqueeze(-1)).reshape(())


def _outer(x: Tensor, other: Tensor) -> Tensor:
    return x.unsqueeze(-1) * other


def _addcmul(x: Tensor, first: Tensor, second: Tensor, *, value: float = 1) -> Tensor:
    product = first * second
    return x + (product if value == 1 else value * product)


_RENAMED: Final[Mapping[str, object]] = {
    "clip": _clip,
    "clamp_min": _clip,
    "clamp_max": _clamp_max,
    "square": _square,
    "mv": _mv,
    "dot": _dot,
    "outer": _outer,
    "addcmul": _addcmul,
}
"""Operators that are others by another name, and that torch does not take apart."""
