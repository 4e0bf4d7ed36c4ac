"""What a forward multiplies by the weights of experts that stand in one parameter, expert by expert."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tico_modules import Forward

Multiply: TypeAlias = Callable[[int, Tensor, bool], Tensor]
"""Gives the product of rows with the weight of an expert, by its number; True: it is (inputs, outputs)."""


class _Function(Protocol):
    def __call__(self, *args: object, **kwargs: object) -> object: ...


_PRODUCTS: Final = (torch.matmul, torch.mm, torch.bmm, Tensor.matmul, Tensor.mm, Tensor.bmm)


class _Weight:
    """Stands for a weight in a forward, and hands products with it on; nothing else is known of it."""

    def __init__(self, like: Tensor, multiply: Multiply) -> None:
        self._like = like
        self._multiply = multiply

    @property
    def shape(self) -> torch.Size:
        """The shape of the weight."""
        return self._like.shape

    @property
    def ndim(self) -> int:
        """The number of its axes."""
        return self._like.ndim

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self._like.dtype

    @property
    def device(self) -> torch.device:
        """Its device."""
        return self._like.device

    def size(self, axis: int | None = None) -> torch.Size | int:
        """Return its shape, or the size of an axis."""
        return self.shape if axis is None else self.shape[axis]

    def __len__(self) -> int:
        """Return the size of the first axis."""
        return len(self._like)

    @classmethod
    def __torch_function__(
        cls,
        func: _Function,
        types: Iterable[type],
        args: tuple[object, ...] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> Tensor:
        """Compute a product with it.

        Raises:
            TypeError: it is used in any other way.
        """
        named = dict(kwargs or {})
        match args:
            case (Tensor() as x, ExpertWeight() as weight, *more) if func is F.linear:
                return _plus(weight.T.product(x), [*more, *named.values()])
            case (Tensor() as x, _Weight() as weight) if func in _PRODUCTS and not named:
                return weight.product(x)
            case _:
                raise _unknown(func)

    def product(self, x: Tensor) -> Tensor:
        """Return ``x @ weight``.

        Raises:
            TypeError: the two cannot be multiplied, as far as is known.
        """
        raise _unknown(torch.matmul)


class ExpertWeight(_Weight):
    """Stands for the weight of the expert `number`, a matrix; `turned` if it is the transposed one."""

    def __init__(self, like: Tensor, multiply: Multiply, number: int, *, turned: bool = False) -> None:
        super().__init__(like, multiply)
        self._number = number
        self._turned = turned

    @property
    def T(self) -> ExpertWeight:  # noqa: N802  # torch's own name
        """The transposed matrix."""
        return ExpertWeight(self._like.T, self._multiply, self._number, turned=not self._turned)

    def t(self) -> ExpertWeight:
        """Return the transposed matrix."""
        return self.T

    def transpose(self, first: int, second: int) -> ExpertWeight:
        """Return the transposed matrix."""
        return self if (first - second) % 2 == 0 else self.T

    def product(self, x: Tensor) -> Tensor:
        """Return ``x @ weight``."""
        return self._multiply(self._number, x, not self._turned)


class ExpertStack(_Weight):
    """Stands for a parameter that holds the weights of all experts, of the shape of `like`.

    >>> stack = ExpertStack(torch.zeros(2, 3, 4), lambda number, x, swapped: x + number)
    >>> (torch.ones(3) @ stack[1]).tolist()
    [2.0, 2.0, 2.0]
    """

    def __getitem__(self, index: int | Tensor) -> ExpertWeight:
        """Return the weight of one expert, by its number.

        Raises:
            IndexError: there is no such expert.
            TypeError: `index` is something else.
        """
        if isinstance(index, Tensor) and index.ndim:
            raise _unknown(Tensor.__getitem__)
        number = range(len(self))[int(index)]
        return ExpertWeight(self._like[number], self._multiply, number)

    def product(self, x: Tensor) -> Tensor:
        """Return the product of each expert's rows, x (experts, rows, inputs), with its weight."""
        if x.ndim != 3 or len(x) != len(self):
            raise _unknown(torch.bmm)
        return torch.stack([self._of_rows_with_values(number, rows) for number, rows in enumerate(x)])

    def _of_rows_with_values(self, number: int, rows: Tensor) -> Tensor:
        """Return the product of `rows`, of which those that are zero were not meant for this expert."""
        meant = rows.any(-1)
        product = self._multiply(number, rows[meant], True)
        return product.new_zeros(len(rows), product.shape[-1]).index_put((meant,), product)


def _plus(product: Tensor, more: list[object]) -> Tensor:
    """Return the product with the bias added, if `more` has one.

    Raises:
        TypeError: it has something else.
    """
    match more:
        case [] | [None]:
            return product
        case [Tensor() as bias]:
            return product + bias
        case _:
            raise _unknown(F.linear)


def _unknown(func: object) -> TypeError:
    return TypeError(f"{func} of weights of experts is not known")


def eager_forward(kind: type[nn.Module]) -> Forward:
    """Return the forward of a class of modules as it was written, without decorators that replace it."""
    written: Forward = inspect.unwrap(kind.forward)
    return written
