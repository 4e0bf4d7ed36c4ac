"""The grids that a graph holds as plain numbers, which no state dict has."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor, fx, nn

from tico_config import CalibrationError, Found, Problem
from tico_pt2e._nodes import operator_of

Numbers: TypeAlias = tuple[int | float, ...]
"""The plain numbers of one node, such as scale, zero point, and the limits of the codes."""

Grids: TypeAlias = Mapping[str, tuple[Numbers, ...]]
"""Those of every point; a point where several values are moved to grids has several."""

POINT: Final = "point"
"""Where a node's `meta` has the path of the point whose grid it is."""

_STATE: Final = "_extra_state"
_CODES: Final = re.compile(r"_codes(_\d+)?$")
_SAVED: Final = (
    "load it into the graph that it was saved from, or a copy, or save the graph itself with "
    "torch.export.save(torch.export.export(graph, args), path)"
)
_NONE_SAVED: Final = (
    "load that of a float model before prepare, that of a prepared graph before convert, and that of an "
    "earlier release with that release"
)


class LiteralGrids(nn.Module):
    """Puts the grids of a graph into its state dict, and refuses state dicts of graphs with other grids.

    Scales of activations are plain numbers in the code of the graph, as runtimes want them. Codes and scales
    of weights from a graph with other grids would fit in shape and dtype, and compute something else.

    It is called by the graph, so that it stays where fx makes another module of the graph. A graph without
    grids, as `prepare` leaves it, has a state dict like that of a float model.
    """

    # What fx calls a node that must stay although nothing reads its result.
    _is_impure = True

    def __init__(self, grids: Grids) -> None:
        super().__init__()
        self.grids = dict(grids)

    def forward(self) -> None:
        """Do nothing."""

    def require_same(self, state_dict: Mapping[str, Tensor], prefix: str) -> None:
        """Refuse a state dict of a graph with other grids; `prefix` is that of this module.

        Raises:
            CalibrationError: with the number of points that differ, and the first of them.
        """
        saved = state_dict.get(prefix + _STATE)
        sentence = _difference(self.grids, {} if saved is None else _read(saved))
        if sentence is not None:
            raise CalibrationError(
                Problem(
                    module=prefix.removesuffix(".").rpartition(".")[0] or None,
                    field="state_dict",
                    value=Found("other grids"),
                    expected="of a graph with the same grids",
                    sentence=sentence,
                    remedy=_NONE_SAVED if saved is None else _SAVED,
                )
            )

    def get_extra_state(self) -> Tensor:
        """Return the grids for a state dict, as the bytes of a text, uint8."""
        text = json.dumps(self.grids, sort_keys=True)
        return torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: object) -> None:
        """Do nothing: the grids were compared before, and never change."""

    def _save_to_state_dict(self, destination: dict[str, object], prefix: str, keep_vars: bool) -> None:
        if self.grids:
            super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Tensor],
        prefix: str,
        local_metadata: Mapping[str, object],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        if prefix + _STATE in state_dict:
            self.require_same(state_dict, prefix)
        elif strict and self.grids:
            missing_keys.append(prefix + _STATE)

    def extra_repr(self) -> str:
        """Return the number of points."""
        return f"{len(self.grids)} points"


def grids_of(graph: fx.Graph) -> Grids:
    """Return the grids of `graph`: of its activations by their points, of constants by their own paths."""
    found: dict[str, tuple[Numbers, ...]] = {}
    for node in graph.nodes:
        if operator_of(node).startswith("dequantize_per_"):
            point = _point_of(node)
            found[point] = (*found.get(point, ()), _numbers(node))
    # Values may share the grid of a point.
    return {point: tuple(dict.fromkeys(numbers)) for point, numbers in found.items()}


def _point_of(node: fx.Node) -> str:
    source = node.all_input_nodes[0]
    if source.op == "get_attr":
        return _CODES.sub("", str(source.target))
    named: object = node.meta.get(POINT)
    return named if isinstance(named, str) else node.name


def _numbers(node: fx.Node) -> Numbers:
    return tuple(number for number in node.args if isinstance(number, int | float))


def _read(saved: Tensor) -> Grids | None:
    """Return the grids that a state dict has, None where they cannot be read."""
    try:
        values: object = json.loads(bytes(saved.tolist()))
    except (ValueError, TypeError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    return {str(point): tuple(_rows(numbers)) for point, numbers in values.items()}


def _rows(numbers: object) -> Iterator[Numbers]:
    for row in numbers if isinstance(numbers, list) else ():
        yield tuple(row) if isinstance(row, list) else ()


def _difference(own: Grids, given: Grids | None) -> str | None:
    """Return how the grids of a state dict differ from those of a graph; None where they are the same."""
    if given is None:
        return "the state dict has grids that cannot be read"
    if own == given:
        return None
    if not given:
        return f"the state dict has no grids, and the graph has them at {len(own)} points"
    if not own:
        return f"the state dict has grids at {len(given)} points, and the graph has none"
    every = [*own, *(point for point in given if point not in own)]
    points = [point for point in every if own.get(point) != given.get(point)]
    first = points[0]
    here, there = _words(own.get(first)), _words(given.get(first))
    share = f"{len(points)} of {len(every)} points"
    return f"the state dict has other grids at {share}, first at {first} ({there}, and {here} in the graph)"


def _words(grids: tuple[Numbers, ...] | None) -> str:
    return "no grid" if not grids else "; ".join(map(_grid_in_words, grids))


def _grid_in_words(numbers: Numbers) -> str:
    if len(numbers) != 4:
        return " ".join(map(str, numbers))
    scale, zero_point, low, high = numbers
    return f"scale {scale:.6g}, zero point {zero_point}, codes {low} to {high}"
