"""From a module to its graph, by torch.export."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from tico_config import Found, Problem, PT2EConfig, UnsupportedError
from tico_pt2e._attention import ATTENTION, attention
from tico_pt2e._composites import take_apart
from tico_pt2e._dynamic_shapes import dynamic_shapes, without_choice
from tico_pt2e._example_inputs import inputs_by_name, named_arguments, require_device
from tico_pt2e._graph import quiet
from tico_pt2e._input_check import input_check
from tico_pt2e._nodes import module_of, operator_of, writes
from tico_pt2e._random_results import require_no_dropout
from tico_pt2e._refusal import refusal, unknown_output
from tico_quantizers.protocol import Example


def export(model: nn.Module, example: Example | None, config: PT2EConfig) -> fx.GraphModule:
    """Return the graph of `model`: functional, attention decomposed, with its inputs checked.

    Raises:
        ConfigError: the example inputs are missing or are none that the model takes.
        UnsupportedError: the model cannot be exported, with the exporter's reason.
    """
    inputs = inputs_by_name(model, example)
    require_device(model, inputs)
    given, shapes = example or Example(), dynamic_shapes(inputs, config)
    try:
        program, graph = _exported(model, given, shapes)
    except Exception as error:  # the exporter and the model may raise anything
        fixed = without_choice(shapes)
        if config.dynamic_shapes is not None or fixed == shapes or unknown_output(error) is not None:
            raise refusal(model, error) from error
        try:
            program, graph = _exported(model, given, fixed)
        except Exception as second:
            raise refusal(model, second) from second
    require_no_dropout(program.graph)
    _require_no_writes(graph)
    return graph


def _exported(
    model: nn.Module, example: Example, shapes: Mapping[str, object]
) -> tuple[ExportedProgram, fx.GraphModule]:
    """Return what the exporter makes of `model`, and the graph in which attention is taken apart."""
    with quiet():
        with named_arguments(model, shapes):
            program = torch.export.export(
                model, example.args, dict(example.kwargs), dynamic_shapes=dict(shapes), strict=False
            )
        graph: fx.GraphModule = take_apart(program, {ATTENTION: attention}).module()
    _check_inputs(graph)
    return program, graph


def _check_inputs(made: fx.GraphModule) -> None:
    """Put one check of the inputs in the place of the exporter's, and drop what is empty."""
    graph = made.graph
    for node in list(graph.nodes):
        # Guards are checked below; the others say what the exporter knows already.
        if node.target == "_guards_fn" or operator_of(node) == "_assert_tensor_metadata":
            graph.erase_node(node)
    _drop_empty_parts(graph)
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    if placeholders:
        made.add_module("input_check", input_check(graph))
        with graph.inserting_after(placeholders[-1]):
            graph.call_module("input_check", tuple(placeholders))


def _drop_empty_parts(graph: fx.Graph) -> None:
    """Leave out of each concatenation what has no elements, such as a cache that nothing is in yet."""
    for node in [node for node in graph.nodes if node.target is torch.ops.aten.cat.default]:
        parts: list[fx.Node] = list(node.args[0])
        whole = [part for part in parts if not _is_empty(part)]
        if whole and len(whole) < len(parts) and len({part.meta["val"].dtype for part in parts}) == 1:
            if len(whole) == 1:
                node.replace_all_uses_with(whole[0])
                graph.erase_node(node)
            else:
                node.args = (whole, *node.args[1:])


def _is_empty(node: fx.Node) -> bool:
    value: object = node.meta.get("val")
    return isinstance(value, Tensor) and any(type(size) is int and size == 0 for size in value.shape)


def _require_no_writes(exported: fx.GraphModule) -> None:
    """Refuse a graph that changes its buffers or inputs: what is kept from call to call has no one grid.

    Raises:
        UnsupportedError: with every node that does.
    """
    problems = [
        Problem(
            module=module_of(node)[0] or None,
            field="model",
            value=Found(f"one whose node {node.name} writes to {node.args[0]}"),
            expected="a model that writes neither to its buffers nor to its inputs",
            sentence=f"its node {node.name} writes to {node.args[0]}, a buffer or an input",
            remedy="pass that state in and return it, or leave it out (for example use_cache=False)",
        )
        for node in exported.graph.nodes
        if writes(node)
    ]
    if problems:
        raise UnsupportedError(*problems)
