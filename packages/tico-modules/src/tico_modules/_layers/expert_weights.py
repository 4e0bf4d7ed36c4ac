"""The weights of experts that stand in one parameter."""

from __future__ import annotations

import attrs
import torch
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules._storage.packed_weight import PackedWeight
from tico_modules._tree.module_tree import parameter


class FloatExpert(nn.Module):
    """The weight (outputs, inputs) of an expert that was left in float, beside others that are integers."""

    weight: nn.Parameter

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach(), requires_grad=False)

    def dequantize(self) -> Tensor:
        """Return the weight as float32."""
        return self.weight.detach().to(torch.float32)

    def extra_repr(self) -> str:
        """Return the shape."""
        return f"float, shape {tuple(self.weight.shape)}"


@attrs.frozen(eq=False)
class ExpertWeights:
    """The weights of all experts that stand in one parameter, each (outputs, inputs).

    `transposed` tells that the parameter holds them as (experts, inputs, outputs), not (experts, outputs,
    inputs). A `FloatExpert` is left in float.

    Raises:
        UnsupportedError: there is none, an expert is something else, or two are of different shapes.
    """

    experts: tuple[PackedWeight | FloatExpert, ...]
    transposed: bool = False

    def __attrs_post_init__(self) -> None:
        """Refuse experts that are none, or not alike."""
        given: tuple[object, ...] = self.experts
        strange = [each for each in given if not isinstance(each, PackedWeight | FloatExpert)]
        shapes = set() if strange else {shape_of(each) for each in self.experts}
        if strange or len(shapes) != 1:
            found = strange[0] if strange else Found(f"experts of the shapes {sorted(shapes)}")
            expected = "a PackedWeight or FloatExpert for each expert, all of one shape"
            raise UnsupportedError(Problem(field="experts", value=found, expected=expected))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the parameter."""
        rows, columns = shape_of(self.experts[0])
        return (len(self.experts), columns, rows) if self.transposed else (len(self.experts), rows, columns)


def shape_of(expert: nn.Module) -> tuple[int, ...]:
    """Return the shape (outputs, inputs) of an expert's weight."""
    return expert.shape if isinstance(expert, PackedWeight) else tuple(parameter_of(expert).shape)


def parameter_of(expert: nn.Module) -> Tensor:
    """Return the float weight of an expert that was left in float."""
    weight = parameter(expert, "weight")
    if weight is None:
        raise UnsupportedError(Problem(field="experts", value=expert, expected="a FloatExpert with a weight"))
    return weight


def dtype_of(weights: ExpertWeights) -> torch.dtype:
    """Return the dtype of the float weights."""
    first = weights.experts[0]
    return first.float_dtype if isinstance(first, PackedWeight) else parameter_of(first).dtype
