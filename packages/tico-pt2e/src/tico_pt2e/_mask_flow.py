"""Where masked attention scores may be on their way to a softmax."""

from __future__ import annotations

from typing import Final

from torch import fx

from tico_pt2e._nodes import operator_of
from tico_pt2e._patterns import PATTERNS, Result

_SOFTMAX: Final = frozenset({"softmax", "_softmax", "log_softmax", "_log_softmax", "_safe_softmax"})
_JOINS: Final = frozenset({"add", "sub", "rsub", "where", "masked_fill", "cat", "stack"})
"""How a mask comes to scores, and scores to other scores."""
_PASSES: Final = frozenset({"mul", "div", "neg", "maximum", "minimum", "clamp", "_to_copy", "to", "float"})


def masked_scores(graph: fx.Graph) -> frozenset[fx.Node]:
    """Return the nodes between where a mask may be applied and the softmax that it is meant for.

    These are the sums, selections and concatenations that a softmax reads, directly or through products,
    changes of shape and each other, and all that is on the way. Products of queries and keys are none.
    """
    reached: set[fx.Node] = set()
    waiting = [node.all_input_nodes[0] for node in graph.nodes if operator_of(node) in _SOFTMAX]
    while waiting:
        node = waiting.pop()
        if node not in reached and _carries_scores(node):
            reached.add(node)
            waiting += node.all_input_nodes
    masked: set[fx.Node] = set()
    for node in graph.nodes:  # in order, so that what it reads comes first
        if node in reached and (operator_of(node) in _JOINS or masked.intersection(node.all_input_nodes)):
            masked.add(node)
    return frozenset(masked)


def _carries_scores(node: fx.Node) -> bool:
    operator = operator_of(node)
    pattern = PATTERNS.get(operator)
    return operator in _JOINS | _PASSES or (pattern is not None and pattern.result is Result.SHARED)
