"""Operators that give another result in every call of a model that is to be one function."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from tico_config import Found, Problem, UnsupportedError
from tico_pt2e._nodes import argument, module_of, operator_of

_DROPOUTS = ("dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout", "native_dropout")


def require_no_dropout(graph: fx.Graph) -> None:
    """Refuse a graph that drops values by chance although the model is in evaluation mode.

    Raises:
        UnsupportedError: with every node that does.
    """
    problems = list(_problems(graph))
    if problems:
        raise UnsupportedError(*problems)


def _problems(graph: fx.Graph) -> Iterator[Problem]:
    for node in graph.nodes:
        share = _share(node)
        if share is not None and share != 0:
            yield Problem(
                module=module_of(node)[0] or None,
                field="model",
                value=Found(f"one whose node {node.name} drops a share of {share}"),
                expected="a model that drops nothing in evaluation mode",
                sentence=f"its node {node.name} drops a share of {share} by chance, in evaluation mode too",
                remedy="give dropout training=self.training, and attention dropout_p=0.0 unless in training",
            )


def _share(node: fx.Node) -> object:
    """Return the share of values that `node` drops, None where it drops none."""
    operator = operator_of(node)
    if operator == "scaled_dot_product_attention":
        return argument(node, 4)
    return argument(node, 1) if operator in _DROPOUTS and argument(node, 2) is True else None
