"""Which layers there are in a model, each seen as a matrix that multiplies rows of inputs."""

from tico_quantizers.layers._blocks import find_blocks, homes_in
from tico_quantizers.layers._experts import less_read, peers_of
from tico_quantizers.layers._matrix import (
    FloatLayer,
    IntegerLayer,
    Layer,
    as_layer,
    columns,
    feature_axis,
    groups,
    input_rows,
    input_tensor,
    matrix,
    output_added,
    reads_rows,
    reason_against,
    shape,
    weight_axes,
    with_weight,
)
from tico_quantizers.layers._selection import output_embedding

__all__ = [
    "FloatLayer",
    "IntegerLayer",
    "Layer",
    "as_layer",
    "columns",
    "feature_axis",
    "find_blocks",
    "groups",
    "homes_in",
    "input_rows",
    "input_tensor",
    "less_read",
    "matrix",
    "output_added",
    "output_embedding",
    "peers_of",
    "reads_rows",
    "reason_against",
    "shape",
    "weight_axes",
    "with_weight",
]
