"""Keys and values as state of the runtime, in the form that openvino-genai and optimum-intel expect."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Final, Protocol

import torch

from tico_export.openvino_files._names import Named, Ordered
from tico_export.protocol import require_extra

BEAM: Final = "beam_idx"


class Size(Protocol):
    """The size of an axis."""

    is_dynamic: bool

    def get_length(self) -> int:
        """Return it where it is fixed."""


class Place(Protocol):
    """Where a node reads a value."""

    def replace_source_output(self, output: Port, /) -> None:
        """Read another one."""


class Port(Protocol):
    """A value of a graph."""

    any_name: str

    def get_node(self) -> Node:
        """Return what makes it."""

    def get_target_inputs(self) -> Iterable[Place]:
        """Return where it is read."""


class Node(Named, Protocol):
    """An operation of a graph."""

    def output(self, index: int, /) -> Port:
        """Return one of its values."""

    def get_output_partial_shape(self, index: int, /) -> Iterable[Size]:
        """Return the sizes of one of its values."""

    def set_arguments(self, arguments: Sequence[Port], /) -> None:
        """Read other values."""


class Graph(Ordered, Protocol):
    """A model of OpenVINO."""

    def input(self, name: str, /) -> Port:
        """Return an input."""

    def add_parameters(self, parameters: Sequence[Node], /) -> None:
        """Take further inputs."""

    def get_ops(self) -> Iterable[Node]:
        """Return the operations."""

    def validate_nodes_and_infer_types(self) -> None:
        """Find the shapes anew."""


def keep_state(model: Graph, kept: Mapping[str, str]) -> None:
    """Keep values from call to call instead of handing them out and in.

    A further input, ``beam_idx`` (batch,), says which row of the last call each row goes on from. A state
    that was reset holds no tokens, for as many rows as ``input_ids`` has.

    Args:
        model: changed in place.
        kept: the names of the inputs that go, and of the outputs that they are from the call before.
    """
    openvino = require_extra("openvino", "openvino")
    _choose_rows(model, kept)
    manager = require_extra("openvino.passes", "openvino").Manager()
    manager.register_pass(require_extra("openvino.passes", "openvino").MakeStateful(dict(kept)))
    manager.run_passes(model)
    ops = openvino.opset13
    zero = ops.constant(torch.zeros(()).numpy())
    shape = ops.shape_of(model.input("input_ids"), "i64")
    batch = ops.gather(shape, ops.constant([0]), ops.constant(0))
    for node in model.get_ops():
        if node.get_type_name() == "ReadValue":
            others = [*node.get_output_partial_shape(0)][1:]
            sizes = [0 if each.is_dynamic else each.get_length() for each in others]
            empty = ops.broadcast(zero, ops.concat([batch, ops.constant(torch.tensor(sizes).numpy())], 0))
            node.set_arguments([empty.output(0)])
    model.validate_nodes_and_infer_types()


def _choose_rows(model: Graph, kept: Mapping[str, str]) -> None:
    """Have readers of the inputs in `kept` read the rows that ``beam_idx`` names."""
    openvino = require_extra("openvino", "openvino")
    ops = openvino.opset13
    chosen = ops.parameter(openvino.PartialShape([-1]), openvino.Type.i32, name=BEAM)
    chosen.output(0).get_tensor().set_names({BEAM})
    model.add_parameters([chosen])
    for name in kept:
        past = model.input(name)
        places = list(past.get_target_inputs())
        rows: Node = ops.gather(past.get_node(), chosen, ops.constant(0))
        for each in places:
            each.replace_source_output(rows.output(0))
