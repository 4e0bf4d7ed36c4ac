"""The float weight of an integer layer: a tensor that is computed where it is used, and never written to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NoReturn, Protocol, final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from typing_extensions import Self

from tico_config import Found, LifecycleError, Problem
from tico_observers import is_scripted

_SAME = ("aten::detach", "aten::alias")


class _Argument(Protocol):
    name: str
    alias_info: _Alias | None


class _Alias(Protocol):
    is_write: bool


class _Schema(Protocol):
    name: str
    is_mutable: bool
    arguments: list[_Argument]
    returns: list[_Argument]


class _Operator(Protocol):
    """What is used of torch's ``OpOverload``, whose own type says nothing of its arguments."""

    _schema: _Schema

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Run the operator."""


@final
class ReadOnlyWeight(Tensor):
    """A tensor with the shape, dtype and device of a float weight, and no values until they are asked for.

    Questions about dtype, device and shape cost nothing. Everything that computes gets the values, and so
    does a copy. An operation that would write to them is refused, also through `data` and through views:
    it would be lost, as what a layer computes with are its codes.

    Raises:
        LifecycleError: an operation writes to it, or asks for its gradient.
    """

    _read: Callable[[], Tensor]
    _part: Callable[[int], Tensor] | None = None

    def __new__(
        cls,
        read: Callable[[], Tensor],
        shape: Sequence[int],
        dtype: torch.dtype,
        device: torch.device,
        stride: Sequence[int] | None = None,
    ) -> ReadOnlyWeight:
        """Return the tensor whose values `read` returns, in this shape and dtype, on this device."""
        made: ReadOnlyWeight = Tensor._make_wrapper_subclass(
            cls, tuple(shape), strides=stride, dtype=dtype, device=device, requires_grad=False
        )
        made._read = read
        return made

    @classmethod
    def of(cls, values: Tensor) -> ReadOnlyWeight:
        """Return `values`, or a view of some, as a tensor that cannot be written to."""
        return cls(lambda: values, values.shape, values.dtype, values.device, values.stride())

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # as torch says to

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch leaves the types open
        cls,
        func: _Operator,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        """Compute `func` on the values; refuse it where it would write to them."""
        named = kwargs or {}
        if _writes(func, args, named):
            _refuse(f"a write by {func._schema.name.removeprefix('aten::')}")
        parts = _read_parts(func._schema.name, args)
        if parts is not None:
            return cls.of(parts)
        if func._schema.name in _SAME and isinstance(args[0], ReadOnlyWeight):
            same = args[0]
            return cls(same._read, same.shape, same.dtype, same.device, same.stride())
        plain_args, plain_kwargs = pytree.tree_map(_values_of, (args, dict(named)))
        result: object = func(*plain_args, **plain_kwargs)
        return pytree.tree_map(_protected, result) if _makes_views(func) else result

    @property
    def data(self) -> Self:
        """The same tensor: its data are no more writable than it is."""
        return self

    @data.setter
    def data(self, value: Tensor) -> None:
        _refuse("an assignment to its data")

    @property
    def requires_grad(self) -> bool:
        """False: nothing is learnt through it."""
        return False

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.requires_grad_(value)

    def requires_grad_(self, requires_grad: bool = True) -> Self:
        """Refuse to be trained; return itself where that is not asked for."""
        if requires_grad:
            _refuse("a request for its gradient")
        return self

    def data_ptr(self) -> int:
        """Refuse: there is no memory that holds the values."""
        _refuse("a request for its memory")

    def untyped_storage(self) -> torch.UntypedStorage:
        """Refuse: there is no memory that holds the values."""
        _refuse("a request for its memory")

    def __dlpack__(self, **kwargs: object) -> NoReturn:
        """Refuse: there is no memory that holds the values."""
        _refuse("a request for its memory")

    def share_memory_(self) -> Self:
        """Refuse: there is no memory that holds the values."""
        _refuse("a request for its memory")

    def __setitem__(self, key: object, value: object) -> None:
        """Refuse."""
        _refuse("an assignment to elements")

    def numpy(self, *, force: bool = False) -> object:  # type: ignore[override]  # torch names NumPy's type
        """Return the values as an array."""
        array: object = self._read().numpy(force=force)
        return array

    def tolist(self) -> object:  # type: ignore[override]  # torch leaves it open
        """Return the values as nested lists."""
        return self._read().tolist()

    def __deepcopy__(self, memo: dict[int, object]) -> Tensor:
        """Return the values as an ordinary tensor."""
        return self._read().clone()

    def __reduce_ex__(self, protocol: object) -> object:  # type: ignore[override]  # as torch
        """Pickle the values as those of an ordinary tensor."""
        plain: object = self._read().__reduce_ex__(protocol)  # type: ignore[no-untyped-call]  # as torch
        return plain

    def __repr__(self) -> str:  # type: ignore[override]  # torch has a keyword of its own
        """Return the values as torch shows them."""
        return repr(self._read())


def read_only(
    read: Callable[[], Tensor],
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    part: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Return the tensor whose values `read` returns at their use; the values themselves while tracing.

    Where its parts along the first axis are asked for by their numbers, only these are read, by `part`.

    >>> weight = read_only(lambda: torch.ones(2), (2,), torch.float32, torch.device("cpu"))
    >>> (weight + 1).tolist()
    [2.0, 2.0]
    """
    if torch.compiler.is_compiling() or is_scripted():
        return read()
    made = ReadOnlyWeight(read, shape, dtype, device)
    made._part = part
    return made


def is_read_only(tensor: Tensor) -> bool:
    """Whether `tensor` is one that `read_only` has made.

    >>> is_read_only(torch.ones(1))
    False
    """
    return isinstance(tensor, ReadOnlyWeight)


def _read_parts(operator: str, args: tuple[object, ...]) -> Tensor | None:
    """Return what an `operator` picks along the first axis, where the parts can be read one by one."""
    match operator, args:
        case "aten::select", (ReadOnlyWeight(_part=part) as stack, 0, int(number)) if part is not None:
            return part(number % len(stack))
        case "aten::index", (ReadOnlyWeight(_part=part) as stack, [Tensor() as numbers]) if part is not None:
            if numbers.dtype == torch.bool:
                return None
            picked, places = torch.unique(numbers % len(stack), return_inverse=True)
            return torch.stack([part(number) for number in picked.tolist()])[places] if len(picked) else None
        case _:
            return None


def _values_of(item: object) -> object:
    return item._read() if isinstance(item, ReadOnlyWeight) else item


def _protected(item: object) -> object:
    return ReadOnlyWeight.of(item) if type(item) is Tensor else item


def _writes(func: _Operator, args: tuple[object, ...], kwargs: Mapping[str, object]) -> bool:
    """Tell whether `func` would write to an argument that is read-only."""
    if not func._schema.is_mutable:
        return False
    declared = func._schema.arguments
    given = dict(zip((argument.name for argument in declared), args, strict=False)) | dict(kwargs)
    written = [given.get(each.name) for each in declared if each.alias_info and each.alias_info.is_write]
    return any(isinstance(leaf, ReadOnlyWeight) for leaf in pytree.tree_leaves(written))


def _makes_views(func: _Operator) -> bool:
    """Tell whether `func` returns a view of what it is given."""
    infos = [each.alias_info for each in func._schema.returns]
    return any(info is not None and not info.is_write for info in infos)


def _refuse(what: str) -> NoReturn:
    # No TypeError: torch takes one in ``+=`` for "not implemented", and Python then adds to a copy.
    remedy = "work on a copy, layer.dequantize(), or change the float model before it is converted"
    sentence = (
        f"the weight of an integer layer got {what}, which would not reach the codes that it stands for"
    )
    expected = "a read"
    raise LifecycleError(
        Problem(field="weight", value=Found(what), expected=expected, remedy=remedy, sentence=sentence)
    )
