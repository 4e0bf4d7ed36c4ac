"""Which operators are quantized, and how: one table."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from typing import Final

import attrs


class Result(enum.Enum):
    """What grid the result of an operator has."""

    OWN = "its own"
    SHARED = "that of its first input"


@attrs.frozen(kw_only=True)
class Pattern:
    """How one operator is quantized.

    `inputs` are the positions of the activations among its arguments; None means every tensor. `weight`,
    `bias` are the positions of these, `axis` the axis of the weight's output channels; `groups` is the
    position of the number of groups. `fuses` says that an activation function that follows belongs to it.
    """

    operator: str
    inputs: tuple[int, ...] | None = (0,)
    weight: int | None = None
    bias: int | None = None
    axis: int = 0
    groups: int | None = None
    fuses: bool = False
    result: Result = Result.OWN


def _weighted(*operators: str, axis: int = 0, groups: int | None = None) -> list[Pattern]:
    return [
        Pattern(operator=operator, weight=1, bias=2, axis=axis, groups=groups, fuses=True)
        for operator in operators
    ]


def _arithmetic(*operators: str) -> list[Pattern]:
    return [Pattern(operator=operator, inputs=None, fuses=operator in _FUSING) for operator in operators]


def _unary(*operators: str) -> list[Pattern]:
    return [Pattern(operator=operator) for operator in operators]


def _shaping(*operators: str) -> list[Pattern]:
    return [Pattern(operator=operator, result=Result.SHARED) for operator in operators]


_FUSING = ("add", "sub", "mul", "div")

_TABLE = (
    *_weighted("linear"),
    *_weighted("conv1d", "conv2d", "conv3d", groups=6),
    *_weighted("conv_transpose1d", "conv_transpose2d", "conv_transpose3d", axis=1, groups=6),
    Pattern(operator="addmm", inputs=(1,), weight=2, bias=0, axis=1, fuses=True),
    Pattern(operator="embedding", inputs=(), weight=0),
    *_arithmetic("matmul", "bmm", "mm", "baddbmm", *_FUSING, "cat", "stack", "maximum", "minimum"),
    *_unary("mean", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "avg_pool1d", "avg_pool2d"),
    *_unary("relu", "relu6", "hardtanh", "leaky_relu", "prelu", "elu", "hardswish", "hardsigmoid", "clamp"),
    *_unary("sigmoid", "tanh", "silu", "gelu", "rsqrt", "neg", "abs", "pow"),
    *_unary("layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm"),
    # What comes in may hold the -inf of a mask.
    Pattern(operator="softmax", inputs=()),
    *_shaping("max_pool1d", "max_pool2d", "view", "_unsafe_view", "reshape", "flatten", "unflatten"),
    *_shaping("permute", "transpose", "t", "squeeze", "unsqueeze", "expand", "repeat", "select", "slice"),
    *_shaping("clone", "alias", "flip", "roll", "narrow", "index_select"),
    *_shaping("pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "constant_pad_nd", "upsample_nearest2d"),
    *_shaping("masked_fill", "getitem"),
)

PATTERNS: Final[Mapping[str, Pattern]] = {pattern.operator: pattern for pattern in _TABLE}
"""The pattern of each operator by its name in ATen."""

ACTIVATION_FUNCTIONS: Final = frozenset({"relu", "relu6", "hardtanh", "hardswish"})
"""What belongs to the operator before it: its input is not moved to a grid."""

SPLITTING: Final = frozenset(
    {"split", "split_with_sizes", "chunk", "unbind", "tensor_split", "max_pool2d_with_indices"}
)
"""Operators with several results, each of which has the grid of the input."""

FILLING: Final[Mapping[str, int]] = {"constant_pad_nd": 2, "masked_fill": 2}
"""The position of the value that these put in beside others: with a zero, the grid of the input does."""

BEFORE_SOFTMAX: Final = frozenset({"add", "sub", "where", "masked_fill"})
"""How masks are applied: the result may hold -inf and stays in float where only a softmax reads it."""
