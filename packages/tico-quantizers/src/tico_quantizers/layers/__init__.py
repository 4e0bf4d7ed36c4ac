"""Which layers a config reaches and why not the others, and a layer as a matrix."""

from tico_quantizers.layers._blocks import find_blocks, homes_in
from tico_quantizers.layers._expert_calls import ExpertStack, ExpertWeight, eager_forward
from tico_quantizers.layers._expert_linear import ExpertLinear
from tico_quantizers.layers._experts import less_read, peers_of
from tico_quantizers.layers._float_lines import float_lines
from tico_quantizers.layers._fused_experts import FusedExperts, fused_experts, quiet
from tico_quantizers.layers._inputs import input_rows, input_tensor, output_added
from tico_quantizers.layers._layer_formats import format_of, layer_kind, multiplication_problems
from tico_quantizers.layers._matrix import (
    FloatLayer,
    IntegerLayer,
    Layer,
    as_layer,
    columns,
    feature_axis,
    groups,
    matrix,
    reads_rows,
    shape,
    weight_axes,
)
from tico_quantizers.layers._outline import outline, outline_line
from tico_quantizers.layers._own_forward import computes_itself, has_own_forward, require_as_its_class
from tico_quantizers.layers._plan import (
    LayerPlan,
    Target,
    group_size_problem,
    plan_layers,
    require_in_place,
    tensor_scale_problem,
)
from tico_quantizers.layers._replacement import QuantizedWeight, with_weight
from tico_quantizers.layers._routers import routers_in
from tico_quantizers.layers._selection import layers_in, output_embeddings, reasons_against
from tico_quantizers.layers._stand_in_values import numbers_of, with_values

__all__ = [
    "ExpertLinear",
    "ExpertStack",
    "ExpertWeight",
    "FloatLayer",
    "FusedExperts",
    "IntegerLayer",
    "Layer",
    "LayerPlan",
    "QuantizedWeight",
    "Target",
    "as_layer",
    "columns",
    "computes_itself",
    "eager_forward",
    "feature_axis",
    "find_blocks",
    "float_lines",
    "format_of",
    "fused_experts",
    "group_size_problem",
    "groups",
    "has_own_forward",
    "homes_in",
    "input_rows",
    "input_tensor",
    "layer_kind",
    "layers_in",
    "less_read",
    "matrix",
    "multiplication_problems",
    "numbers_of",
    "outline",
    "outline_line",
    "output_added",
    "output_embeddings",
    "peers_of",
    "plan_layers",
    "quiet",
    "reads_rows",
    "reasons_against",
    "require_as_its_class",
    "require_in_place",
    "routers_in",
    "shape",
    "tensor_scale_problem",
    "weight_axes",
    "with_values",
    "with_weight",
]
