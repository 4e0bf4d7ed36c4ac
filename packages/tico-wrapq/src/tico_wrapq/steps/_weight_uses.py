"""Which weights of its own a module's forward computes with, and along which axes it sums them."""

from __future__ import annotations

import math
import weakref
from collections.abc import Mapping, Sequence
from typing import Final

import attrs
from torch import Tensor, nn

from tico_wrapq.steps._data_following import tensors_in
from tico_wrapq.steps._operators import Effect, Operator

_SECOND_SUMMED: Final = {"matmul": (-1, -2), "bmm": (-1, -2), "mm": (-1, -2), "mv": (-1, -1)}
"""Along which axis a product sums its first operand, and its second one."""

_THREE: Final = {"addmm": (-1, -2), "baddbmm": (-1, -2), "addbmm": (-1, -2), "addmv": (-1, -1)}
"""The same for those whose operands come after what they are added to."""

_LAST_SUMMED: Final = frozenset({"linear", "embedding", "embedding_bag"})
_GROUPED: Final = frozenset({"grouped_mm", "_grouped_mm"})
_SUMS: Final = frozenset({"add", "sub"})
_BIAS_PLACES: Final = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d"), 2),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), 2),
    **dict.fromkeys(("layer_norm", "group_norm", "bilinear"), 3),
    **dict.fromkeys(("batch_norm", "instance_norm"), 4),
    **dict.fromkeys(_THREE, 0),
}
"""Which argument is a bias."""


@attrs.frozen
class WeightUse:
    """How a step reads a weight: the `axes` of it that are summed over, and whether it is added."""

    axes: tuple[int, ...]
    is_added: bool = False


class WeightUses:
    """Finds the parameters among the operands of steps: themselves, views of them, and copies of parts."""

    def __init__(self) -> None:
        self._copies: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}

    def follow(self, operator: Operator, args: Sequence[object], results: object) -> None:
        """Note that `results` hold what a parameter does, where a function has copied some of it."""
        moves = operator.effect is Effect.MOVES and args and isinstance(results, Tensor)
        if moves and isinstance(results, Tensor) and isinstance(args[0], Tensor):
            source = args[0]
            if results._base is None and results is not source and self._weight_in(source) is not None:
                self._copies[id(results)] = weakref.ref(results), source

    def find(
        self, operator: Operator, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> list[tuple[nn.Parameter, WeightUse]]:
        """Return the parameters that a step computes with, each with how."""
        found = []
        for operand in tensors_in((tuple(args), *kwargs.values())):
            parameter = self._weight_in(operand)
            if parameter is not None:
                axes = _all_but_outputs(operator, parameter)
                if axes is None:
                    axis = _summed_axis(operator, operand, args, kwargs)
                    axes = _axes(parameter, self._viewed(operand), axis)
                found.append((parameter, WeightUse(axes, _is_added(operator, operand, args, kwargs))))
        return found

    def _weight_in(self, tensor: Tensor) -> nn.Parameter | None:
        """Return the parameter whose values `tensor` holds, however they came there."""
        # A plain tensor is no parameter, and asking it takes most of a microsecond.
        while type(tensor) is Tensor or not isinstance(tensor, nn.Parameter):
            source = self._source(tensor)
            source = tensor._base if source is None else source
            if source is None:
                return None
            tensor = source
        return tensor

    def _viewed(self, tensor: Tensor) -> Tensor:
        """Return what `tensor` is a copy of, which has the same last axes; itself where it is none."""
        source = self._source(tensor)
        return tensor if source is None else self._viewed(source)

    def _source(self, tensor: Tensor) -> Tensor | None:
        known, source = self._copies.get(id(tensor), (None, None))
        return source if known is not None and known() is tensor else None


def _is_added(
    operator: Operator, operand: Tensor, args: Sequence[object], kwargs: Mapping[str, object]
) -> bool:
    if operator.name in _SUMS or kwargs.get("bias") is operand:
        return True
    place = _BIAS_PLACES.get(operator.name, len(args))
    return place < len(args) and args[place] is operand


def _all_but_outputs(operator: Operator, parameter: Tensor) -> tuple[int, ...] | None:
    """Return the axes of the weight of a convolution or of a bilinear layer, but for that of its outputs."""
    if parameter.ndim < 3 or not operator.name.startswith(("conv", "bilinear")):
        return None
    outputs = 1 if "transpose" in operator.name else 0
    return tuple(axis for axis in range(parameter.ndim) if axis != outputs)


def _summed_axis(
    operator: Operator, operand: Tensor, args: Sequence[object], kwargs: Mapping[str, object]
) -> int | None:
    """Return the axis of `operand` that a step sums over, counted from the last; None where it sums none."""
    if operator.name in _LAST_SUMMED:
        return -1
    if operator.name in _GROUPED:
        return -2
    if operator.name == "einsum":
        return _einsum_axis(operand, args)
    pair, start = _SECOND_SUMMED.get(operator.name), 0
    if pair is None:
        pair, start = _THREE.get(operator.name), 1
    if pair is None:
        return None
    places = [place for place, each in enumerate(args) if each is operand]
    is_second = start + 1 in places or any(
        kwargs.get(name) is operand for name in ("other", "mat2", "batch2")
    )
    return pair[1] if is_second else pair[0]


def _einsum_axis(operand: Tensor, args: Sequence[object]) -> int | None:
    """Return the last axis of `operand` that the result of an einsum does not have, counted from the last."""
    text = args[0] if args and isinstance(args[0], str) else ""
    inputs, arrow, output = text.replace(" ", "").partition("->")
    operands = list(tensors_in(tuple(args[1:])))
    terms = inputs.split(",")
    place = next((at for at, each in enumerate(operands) if each is operand), None)
    if not arrow or place is None or place >= len(terms):
        return None
    summed = [at for at, letter in enumerate(terms[place]) if letter.isalpha() and letter not in output]
    return summed[-1] - len(terms[place]) if summed else None


def _axes(parameter: Tensor, operand: Tensor, axis: int | None) -> tuple[int, ...]:
    """Return the axes of `parameter` that `axis` of an operand, which is a view of it, runs along.

    They are told by the strides. The last axis, which is that of the channels elsewhere, where there is none.
    """
    last = (max(parameter.ndim - 1, 0),)
    if axis is None or -axis > operand.ndim:
        return last
    size, stride = operand.shape[axis], operand.stride(axis)
    is_view = operand is parameter or operand._base is parameter
    alike = [at for at in range(parameter.ndim) if parameter.stride(at) == stride]
    if not (is_view and alike):
        return last
    whole = [at for at in alike if parameter.shape[at] == size] or alike[-1:]
    axes = [whole[-1]]
    while axes[0] > 0 and size > math.prod(parameter.shape[at] for at in axes):
        axes.insert(0, axes[0] - 1)
    return tuple(axes)
