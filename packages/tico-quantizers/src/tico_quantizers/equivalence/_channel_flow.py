"""Where the channels of a layer's output go: followed through one run of the model.

Scaling a channel of a layer's output and undoing it in the layers that read the channel changes nothing as
long as everything in between passes the scale on. What passes it on is listed here; everything else that
touches a channel is a reason to leave its layer alone.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, Final, Protocol, TypeAlias

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tico_quantizers.calibration import is_observing, tensor_leaves
from tico_quantizers.layers import ExpertWeight


class TorchFunction(Protocol):
    """Any function or method of torch."""

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call it."""


@attrs.frozen(eq=False)
class Channels:
    """Which channel of `source` each element of a tensor is proportional to, in the tensor's shape."""

    source: str
    numbers: Tensor


@attrs.frozen(eq=False, kw_only=True)
class FunctionCall:
    """A call of a function of torch: what it was given and gave, and the channels of its arguments."""

    name: str
    function: TorchFunction
    args: tuple[object, ...]
    kwargs: Mapping[str, object]
    result: object
    channels: Callable[[object], Channels | None]

    def argument(self, index: int, name: str) -> object:
        """Return an argument, positional or by keyword."""
        return self.args[index] if index < len(self.args) else self.kwargs.get(name)

    @property
    def first(self) -> Channels | None:
        """The channels of the first argument."""
        return self.channels(self.argument(0, "input"))

    @property
    def shape(self) -> torch.Size:
        """The shape of the result."""
        return self.result.shape if isinstance(self.result, Tensor) else torch.Size()


Followed: TypeAlias = tuple[Channels | None, ...]
"""The channels of each tensor of a result."""


def same_order(call: FunctionCall) -> Followed:
    """The same elements in the same order, each perhaps through a function that commutes with scaling."""
    first = call.first
    if first is None or any(
        isinstance(argument, torch.dtype) for argument in call.args if call.name == "view"
    ):
        return ()
    return (Channels(first.source, first.numbers.reshape(call.shape)),)


def moved(call: FunctionCall) -> Followed:
    """Elements of the tensor in another order: the same function moves the numbers of their channels."""
    first = call.first
    if first is None or not call.args:
        return ()
    numbers: object = call.function(first.numbers, *call.args[1:], **call.kwargs)
    return tuple(Channels(first.source, each) for each in tensor_leaves(numbers))


def _product(call: FunctionCall) -> Followed:
    """A product that is proportional to one of its factors, the second if it could be either."""
    factors = call.args[0], call.argument(1, "other")
    last = call.channels(factors[1]) or call.channels(factors[0])
    return () if last is None else (Channels(last.source, last.numbers.expand(call.shape)),)


def _quotient(call: FunctionCall) -> Followed:
    first = call.first
    rounded = call.kwargs.get("rounding_mode") is not None
    if first is None or rounded or call.channels(call.argument(1, "other")) is not None:
        return ()
    return (Channels(first.source, first.numbers.expand(call.shape)),)


def _rows_combined(numbers: Tensor, shape: torch.Size) -> Tensor | None:
    """Return the numbers for sums over the rows of a matrix, if every row has the same ones."""
    row = numbers[..., :1, :]
    return row.expand(shape) if bool((numbers == row).all()) else None


def matrix_product(call: FunctionCall) -> Followed:
    """The columns of a product of matrices, not vectors, are proportional to those of the second one."""
    second = call.channels(call.argument(1, "other"))
    if second is None or not 2 <= second.numbers.ndim <= len(call.shape):
        return ()
    numbers = _rows_combined(second.numbers, call.shape)
    return () if numbers is None else (Channels(second.source, numbers),)


def attention(call: FunctionCall) -> Followed:
    """The output of an attention is proportional to the values."""
    value = call.channels(call.argument(2, "value"))
    if value is None:
        return ()
    numbers = value.numbers
    if numbers.ndim > 3 and numbers.shape[-3] != call.shape[-3]:
        numbers = numbers.repeat_interleave(call.shape[-3] // numbers.shape[-3], -3)
    combined = _rows_combined(numbers, call.shape)
    return () if combined is None else (Channels(value.source, combined),)


def _pooled(call: FunctionCall) -> Followed:
    """A maximum or mean over windows of the last axes, as many as the name says."""
    first = call.first
    if first is None or not call.name[-2:-1].isdigit():
        return ()
    axes = int(call.name[-2])
    numbers = first.numbers
    for axis in range(-axes, 0):
        numbers = numbers.narrow(axis, 0, 1)
    return (
        (Channels(first.source, numbers.expand(call.shape)),)
        if bool((first.numbers == numbers).all())
        else ()
    )


def _mean(call: FunctionCall) -> Followed:
    """A mean over axes along which the channel does not change: that of the squares is then the square."""
    first = call.first
    if first is None or not call.args or "dtype" in call.kwargs:
        return ()
    numbers = first.numbers.to(torch.float64)
    mean: object = call.function(numbers, *call.args[1:], **call.kwargs)
    squares: object = call.function(numbers.square(), *call.args[1:], **call.kwargs)
    # Both are exact where the numbers are the same, and further apart than rounding where they are not.
    if not isinstance(mean, Tensor) or not isinstance(squares, Tensor) or not torch.equal(mean**2, squares):
        return ()
    return (Channels(first.source, mean.to(torch.int32)),)


def joined(call: FunctionCall) -> Followed:
    """Tensors of one source joined to each other, as in a cache, and to empty ones, as at its beginning."""
    parts = call.argument(0, "tensors")
    given = [part for part in parts if isinstance(part, Tensor)] if isinstance(parts, Sequence) else []
    followed = [call.channels(part) for part in given if part.numel()]
    known = [channels for channels in followed if channels is not None]
    if not known or len(known) < len(followed) or len({channels.source for channels in known}) > 1:
        return ()
    if len(known) == 1:
        return (Channels(known[0].source, known[0].numbers.reshape(call.shape)),)
    others = {name: value for name, value in call.kwargs.items() if name != "tensors"}
    together: object = call.function([each.numbers for each in known], *call.args[1:], **others)
    return (Channels(known[0].source, together),) if isinstance(together, Tensor) else ()


Rules: TypeAlias = Mapping[str, Callable[[FunctionCall], Followed]]
"""What a function of some name passes on."""

IN_ORDER: Final = (
    *("view", "reshape", "view_as", "reshape_as", "flatten", "unflatten", "unsqueeze", "squeeze"),
    *("to", "float", "double", "half", "bfloat16", "type", "clone", "detach", "contiguous", "cpu", "cuda"),
    *("neg", "__neg__"),
)
MOVING: Final = (
    *("transpose", "swapaxes", "permute", "movedim", "t", "expand", "expand_as", "repeat", "flip"),
    *("repeat_interleave", "__getitem__", "chunk", "split", "narrow", "select", "unbind", "index_select"),
)
MULTIPLYING: Final = ("matmul", "__matmul__", "bmm")
JOINING: Final = ("cat", "concat", "concatenate")
_RULES: Final[Rules] = {
    **dict.fromkeys(
        (*IN_ORDER, "relu", "relu_", "leaky_relu", "leaky_relu_", "dropout", "feature_dropout"), same_order
    ),
    **dict.fromkeys(MOVING, moved),
    **dict.fromkeys(("mul", "multiply", "__mul__", "__rmul__"), _product),
    **dict.fromkeys(("div", "true_divide", "__truediv__"), _quotient),
    **dict.fromkeys(MULTIPLYING, matrix_product),
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(
        (
            f"{kind}_pool{axes}d"
            for kind in ("max", "avg", "adaptive_avg", "adaptive_max")
            for axes in (1, 2, 3)
        ),
        _pooled,
    ),
    "mean": _mean,
    **dict.fromkeys(JOINING, joined),
}
_METADATA: Final = frozenset(
    (
        *("__get__", "__hash__", "__len__", "__repr__", "size", "stride", "storage_offset", "is_contiguous"),
        *("dim", "ndimension", "numel", "nelement", "element_size", "get_device"),
        *("is_floating_point", "is_complex", "type"),
    )
)


_VALUELESS: Final = frozenset(
    (
        *("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like"),
        *("new_zeros", "new_ones", "new_empty", "new_full"),
    )
)
"""What takes nothing of a tensor but its shape and format."""

_CASTS: Final = ("to", "float", "double", "half", "bfloat16", "type", "detach", "contiguous")


class FollowedTensors:
    """Tensors that are followed as long as they live, each with its channels; in a cache, beyond a pass."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[weakref.ref[Tensor], Channels]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> FollowedTensors:
        """Return one of no tensors: what a copied model computes are others."""
        return FollowedTensors()

    def add(self, tensor: Tensor, channels: Channels) -> None:
        """Follow `tensor`."""
        key = id(tensor)
        known = self._known

        def forget(reference: weakref.ref[Tensor]) -> None:
            if key in known and known[key][0] is reference:
                del known[key]

        known[key] = (weakref.ref(tensor, forget), channels)

    def channels_of(self, tensor: object) -> Channels | None:
        """Return the channels of a tensor that is followed, else None."""
        known = self._known.get(id(tensor))
        return known[1] if known is not None and known[0]() is tensor else None


class ChannelFlow(TorchFunctionMode):
    """While it is entered, follows every tensor that `begin` was told of.

    `broken` has the sources whose channels something reads that does not pass the scale on, each with the
    reason; `also_read` has the `guarded` tensors, by their names, that a function was given. `multiplied` has
    the channels that each of the `matrices` (outputs, inputs) was multiplied by, of which it is a reader.
    What a function passes on is said by the `rules`.
    """

    rules: ClassVar[Rules] = _RULES

    def __init__(
        self,
        guarded: Mapping[str, Tensor],
        tensors: FollowedTensors | None = None,
        matrices: Mapping[str, Tensor] | None = None,
    ) -> None:
        super().__init__()
        self.multiplied: dict[str, list[Channels | None]] = {}
        self._matrices = {id(tensor): (tensor, name) for name, tensor in (matrices or {}).items()}
        self.broken: dict[str, str] = {}
        self.also_read: dict[str, str] = {}
        self.paused = 0
        self._guarded = {id(tensor): name for name, tensor in guarded.items()}
        self._tensors = tensors or FollowedTensors()

    def __torch_function__(
        self,
        func: TorchFunction,
        types: Sequence[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Call the function and note what it has done to the channels of its arguments."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not (self.paused or is_observing()):
            name = getattr(func, "__name__", type(func).__name__)
            call = FunctionCall(
                name=name, function=func, args=args, kwargs=kwargs, result=result, channels=self.channels_of
            )
            self.note(call)
        return result

    def begin(self, tensor: Tensor, channels: Channels) -> None:
        """Follow `tensor`."""
        self._tensors.add(tensor, channels)

    def channels_of(self, tensor: object) -> Channels | None:
        """Return the channels of a tensor that is followed, else None."""
        return self._tensors.channels_of(tensor)

    def end(self, tree: object, reason: str) -> None:
        """Give up the sources of all tensors in `tree`."""
        for tensor in tensor_leaves(tree):
            self._break(tensor, reason)

    def _break(self, tensor: Tensor, reason: str) -> None:
        channels = self.channels_of(tensor)
        if channels is not None:
            self.broken.setdefault(channels.source, reason)

    def note(self, call: FunctionCall) -> None:
        """Note what a call has done."""
        given = tensor_leaves((call.args, dict(call.kwargs)))
        results = tensor_leaves(call.result)
        if call.name in _VALUELESS or (call.name in _METADATA and not results):
            return
        if any(isinstance(argument, ExpertWeight) for argument in call.args) or self._multiplies(call):
            return  # a layer of its own reads it, or a matrix
        for tensor in given:
            if id(tensor) in self._guarded:
                self.also_read.setdefault(self._guarded[id(tensor)], call.name.strip("_"))
        followed = [channels for tensor in given if (channels := self.channels_of(tensor)) is not None]
        if followed:
            self.pass_on(call, results, followed)

    def pass_on(self, call: FunctionCall, results: list[Tensor], followed: list[Channels]) -> None:
        """Follow the results, and give up the sources that they are not proportional to."""
        passed = self._passed(call, results)
        for tensor, channels in zip(results, passed, strict=bool(passed)):
            self.begin(tensor, channels)
        kept = {channels.source for channels in passed}
        times = Counter(channels.source for channels in followed)
        for channels in followed:
            repeated = times[channels.source] > 1 and call.name not in JOINING
            if channels.source not in kept or repeated:
                self.broken.setdefault(channels.source, self.reason(call))

    def reason(self, call: FunctionCall) -> str:
        """Return what to say of a source that `call` does not pass on."""
        return f"its output is read by {call.name.strip('_')}"

    def _passed(self, call: FunctionCall, results: list[Tensor]) -> list[Channels]:
        """Return the channels of each result, or nothing if they do not pass on what was followed."""
        # A rule calls the function again, which would write into what it is given as `out`.
        rule = None if "out" in call.kwargs else self.rules.get(call.name)
        found = [channels for channels in (rule(call) if rule else ()) if channels is not None]
        fits = len(found) == len(results) and all(
            channels.numbers.shape == tensor.shape and tensor.is_floating_point()
            for channels, tensor in zip(found, results, strict=False)
        )
        return found if fits else []

    def _multiplies(self, call: FunctionCall) -> bool:
        """Note what a call does with a matrix; return whether it multiplies followed channels by it."""
        known = [
            name
            for tensor in tensor_leaves((call.args, dict(call.kwargs)))
            if (name := self.matrix_name(tensor))
        ]
        if not known:
            return False
        weight = self.matrix_name(call.argument(1, "weight")) if call.name == "linear" else None
        if weight is not None and len(known) == 1:
            self.multiplied.setdefault(weight, []).append(call.first)
            return call.first is not None
        if call.name in _CASTS and isinstance(call.result, Tensor):
            self._matrices[id(call.result)] = call.result, known[0]
            return True
        for name in known:
            self.also_read.setdefault(name, call.name.strip("_"))
        return False

    def matrix_name(self, tensor: object) -> str | None:
        """Return the name of a matrix, or of the one that `tensor` is a cast of."""
        found = self._matrices.get(id(tensor))
        return found[1] if found is not None and found[0] is tensor else None
