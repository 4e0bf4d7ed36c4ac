"""Concatenations: what they join, and those at the end of a graph, whose parts need no common grid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from torch import fx

from tico_pt2e._nodes import argument, operator_of
from tico_pt2e._patterns import PATTERNS, SPLITTING, Result

CONCATENATIONS: Final = frozenset({"cat", "stack"})


def output_concats(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the concatenations that nothing reads but the output, and others of their kind.

    Operators that only move values may stand between.
    """
    leads_out: set[fx.Node] = set()
    for node in reversed(graph.nodes):
        only_out = all(user.op == "output" or user in leads_out for user in node.users)
        if node.users and only_out and _moves_values(operator_of(node)):
            leads_out.add(node)
    return frozenset(node for node in leads_out if operator_of(node) in CONCATENATIONS)


def _moves_values(operator: str) -> bool:
    pattern = PATTERNS.get(operator)
    shares = pattern is not None and pattern.result is Result.SHARED
    return shares or operator in CONCATENATIONS | SPLITTING


def parts_of(node: fx.Node) -> tuple[fx.Node, ...]:
    """Return what `node` joins; nothing where it is no concatenation."""
    joined = argument(node, 0) if operator_of(node) in CONCATENATIONS else ()
    return tuple(part for part in joined if isinstance(part, fx.Node)) if isinstance(joined, Sequence) else ()
