"""Where the output of a layer goes through functions that commute with orthogonal matrices of its channels.

Moving elements, adding tensors of the same channels, and factors that are the same for all channels do; so
does attention, for the channels of a value head. Everything else that touches a tensor is a reason to leave
its channels as they are.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import ClassVar, Final

import torch
from torch import Tensor

from tico_quantizers.equivalence._channel_flow import (
    IN_ORDER,
    JOINING,
    MOVING,
    MULTIPLYING,
    ChannelFlow,
    Channels,
    Followed,
    FollowedTensors,
    FunctionCall,
    Rules,
    attention,
    joined,
    matrix_product,
    moved,
    same_order,
)


def _writes(name: str) -> bool:
    """Return whether a function of that name writes to its first argument."""
    is_special = name.startswith("__")
    return name.startswith(("__i", "__set")) if is_special else name.endswith("_")


def varying_axes(numbers: Tensor) -> list[int]:
    """Return the axes, counted from the last, along which the numbers of channels are not all the same."""
    return [
        axis - numbers.ndim
        for axis, stride in enumerate(numbers.stride())
        if stride and numbers.shape[axis] > 1 and not bool((numbers == numbers.narrow(axis, 0, 1)).all())
    ]


def _scaled(call: FunctionCall) -> Followed:
    """A product or quotient with numbers that are the same for all channels."""
    first, other = call.argument(0, "input"), call.argument(1, "other")
    if call.name in _DIVIDING:
        found, factor = call.channels(first), other
    else:
        found, factor = call.channels(first) or call.channels(other), other
        factor = first if call.channels(first) is None else other
    if found is None or call.channels(factor) is not None or call.kwargs.get("rounding_mode") is not None:
        return ()
    if isinstance(factor, Tensor):
        axes = varying_axes(found.numbers)
        if any(factor.ndim >= -axis and factor.shape[axis] > 1 for axis in axes):
            return ()
    return (Channels(found.source, found.numbers.expand(call.shape)),)


def _summed(call: FunctionCall) -> Followed:
    """A sum or mean over axes along which the channel does not change."""
    first = call.first
    if first is None or (len(call.args) < 2 and "dim" not in call.kwargs) or "dtype" in call.kwargs:
        return ()
    # Numbers in float64 are exact, and so is the mean of equal ones; of others it is told by that of squares.
    numbers, squares = (
        torch.mean(each, *call.args[1:], **call.kwargs)  # type: ignore[call-overload]  # as it was called
        for each in (first.numbers.to(torch.float64), first.numbers.to(torch.float64).square())
    )
    if not isinstance(numbers, Tensor) or not torch.equal(numbers.square(), squares):
        return ()
    return (Channels(first.source, numbers.to(torch.int32)),)


def _unchanged(call: FunctionCall) -> Followed:
    """What has changed nothing, as dropout in evaluation mode."""
    source = call.argument(0, "input")
    if not isinstance(source, Tensor) or not isinstance(call.result, Tensor):
        return ()
    return same_order(call) if torch.equal(source, call.result) else ()


_DIVIDING: Final = ("div", "true_divide", "__truediv__", "div_", "__itruediv__")
_MULTIPLIED: Final = ("mul", "multiply", "__mul__", "__rmul__", "mul_", "__imul__")
_ADDING: Final = (
    *("add", "__add__", "__radd__", "add_", "__iadd__"),
    *("sub", "subtract", "__sub__", "__rsub__", "sub_", "__isub__"),
)
_INDEXED: Final = ("index_add", "index_add_")
_ZEROS: Final = ("zeros", "zeros_like", "new_zeros")
_MIXING: Final = (*MULTIPLYING, "scaled_dot_product_attention")
_WEIGHING: Final = (*_MULTIPLIED, *_DIVIDING, *_MIXING, "sum", "neg", "__neg__")
"""What changes how much a vector counts that was added before."""
_RULES: Final[Rules] = {
    **dict.fromkeys(IN_ORDER, same_order),
    **dict.fromkeys(MOVING, moved),
    **dict.fromkeys(JOINING, joined),
    **dict.fromkeys((*_MULTIPLIED, *_DIVIDING), _scaled),
    **dict.fromkeys(("sum", "mean"), _summed),
    **dict.fromkeys(("dropout", "dropout_", "feature_dropout"), _unchanged),
    **dict.fromkeys(MULTIPLYING, matrix_product),
    "scaled_dot_product_attention": attention,
}


class RotationFlow(ChannelFlow):
    """While it is entered, follows the outputs of layers, tables and norms.

    `sums` has the pairs of sources whose tensors were added to each other; one that was added to something
    else is a pair by itself. `heads` has how many channels of each source attention has mixed at once,
    `weighed` the sources that were multiplied by something or summed, `looked_up` the tables that something
    was looked up in, `norms` the sources that are norms, and `places` the modules that are running, the
    innermost last.
    """

    rules: ClassVar[Rules] = _RULES

    def __init__(
        self, guarded: Mapping[str, Tensor], tables: Mapping[str, Tensor], tensors: FollowedTensors
    ) -> None:
        super().__init__(guarded, tensors, tables)
        self.sums: set[tuple[str, str]] = set()
        self.heads: dict[str, set[int]] = {}
        self.norms: set[str] = set()
        self.weighed: set[str] = set()
        self.places: list[str] = []
        self.looked_up: set[str] = set()
        self._zeros: dict[int, weakref.ref[Tensor]] = {}

    def note(self, call: FunctionCall) -> None:
        """Note what a call has done."""
        table = self.matrix_name(call.argument(1, "weight")) if call.name == "embedding" else None
        if table is not None and isinstance(call.result, Tensor):
            self.looked_up.add(table)
            self.begin_rows(table, call.result)
        elif call.name in _ZEROS and isinstance(call.result, Tensor):
            self._zeros[id(call.result)] = weakref.ref(call.result)
        else:
            super().note(call)
            if _writes(call.name) and call.args:
                self._zeros.pop(id(call.args[0]), None)

    def begin_rows(self, source: str, output: Tensor) -> None:
        """Follow `output`, the channels of whose last axis are those of `source`."""
        numbers = torch.arange(output.shape[-1], dtype=torch.int32, device=output.device)
        self.begin(output, Channels(source, numbers.expand(output.shape)))

    def pass_on(self, call: FunctionCall, results: list[Tensor], followed: list[Channels]) -> None:
        """Follow the results, and give up the sources that do not commute with what has happened."""
        together = self._added(call) if call.name in _ADDING else None
        together = self._index_added(call) if call.name in _INDEXED else together
        if together is not None:
            self._sum(together, results[0], self.reason(call))
            return
        if call.name in _ADDING:
            self.sums |= {(each.source, each.source) for each in followed if each.source not in self.norms}
        if call.name in _WEIGHING:
            self.weighed |= {each.source for each in followed}
        if call.name in _MIXING:
            self._note_heads(call)
        super().pass_on(call, results, followed)

    def reason(self, call: FunctionCall) -> str:
        """Return what to say of a source that `call` does not pass on."""
        name = call.name.strip("_")
        what = "something that no layer has written is added to it" if name in _ADDING else f"{name} reads it"
        return f"{what} in {self.places[-1]}" if self.places and self.places[-1] else what

    def _added(self, call: FunctionCall) -> tuple[Channels, ...] | None:
        """Return the channels that were added to each other, if they are the same."""
        given = call.argument(0, "input"), call.argument(1, "other")
        found = [each for each in map(call.channels, given) if each is not None]
        if len(found) < 2 and not any(map(self._is_zero, given)):
            return None
        numbers = [each.numbers.expand(call.shape) for each in found]
        if any(not torch.equal(numbers[0], each) for each in numbers[1:]):
            return None
        return tuple(map(Channels, (each.source for each in found), numbers))

    def _index_added(self, call: FunctionCall) -> tuple[Channels, ...] | None:
        """Return the channels of rows that were added to rows of zeros, or of the same channels."""
        target, axis = call.argument(0, "input"), call.argument(1, "dim")
        rows, into = call.channels(call.argument(3, "source")), call.channels(target)
        if rows is None or not isinstance(axis, int) or (into is None and not self._is_zero(target)):
            return None
        if not rows.numbers.shape[axis]:
            return (rows,) if into is None else (into,)
        if axis - (rows.numbers.ndim if axis >= 0 else 0) in varying_axes(rows.numbers):
            return None
        numbers = rows.numbers.narrow(axis, 0, 1).expand(call.shape)
        if into is not None and not torch.equal(into.numbers, numbers):
            return None
        spread = Channels(rows.source, numbers)
        return (spread,) if into is None else (spread, into)

    def _is_zero(self, tensor: object) -> bool:
        known = self._zeros.get(id(tensor))
        return known is not None and known() is tensor

    def _sum(self, parts: tuple[Channels, ...], result: Tensor, reason: str) -> None:
        """Follow the sum of `parts`, which are sources of one stream from now on."""
        first, *others = parts
        normed = [each.source for each in parts if each.source in self.norms]
        if normed:
            for each in parts:
                self.broken.setdefault(each.source, f"it is added to the output of {normed[0]}")
            return
        self.sums |= {(first.source, other.source) for other in others}
        if first.numbers.shape == result.shape:
            self.begin(result, first)

    def _note_heads(self, call: FunctionCall) -> None:
        """Note how many channels of the values are mixed by the same weights, if they are neighbours."""
        is_product = call.name in MULTIPLYING
        values = call.channels(call.argument(1, "other") if is_product else call.argument(2, "value"))
        if values is None or values.numbers.ndim < 2 or not values.numbers.numel():
            return
        rows = values.numbers[..., 0, :].reshape(-1, values.numbers.shape[-1])
        size = rows.shape[1]
        expected = rows[:, :1] + torch.arange(size, dtype=rows.dtype, device=rows.device)
        if torch.equal(rows, expected) and not bool((rows[:, 0] % size).any()):
            self.heads.setdefault(values.source, set()).add(size)
        else:
            self.broken.setdefault(values.source, "attention mixes channels that are no neighbours")
