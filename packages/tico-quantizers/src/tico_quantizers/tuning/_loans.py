"""Tensors that modules compute with for a while, in the place of their own."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import attrs
from torch import Tensor, nn

from tico_config import Found, Problem, UnsupportedError
from tico_modules import tensor_place


@attrs.frozen(eq=False, kw_only=True)
class Loan:
    """A tensor for the parameter or buffer `name` of `module`, which may have derivatives."""

    module: nn.Module
    name: str
    tensor: Tensor

    def place(self) -> dict[str, Tensor]:
        """Return the dictionary in which the module holds the tensor that this one stands for.

        Raises:
            UnsupportedError: it holds none of that name.
        """
        place = tensor_place(self.module, self.name)
        if place is None:
            kind = type(self.module).__name__
            expected = f"a parameter or buffer that the {kind} holds"
            raise UnsupportedError(Problem(field="name", value=Found(self.name), expected=expected))
        return place


@contextmanager
def lent(loans: Iterable[Loan]) -> Iterator[None]:
    """Let modules compute with the tensors of `loans`; afterwards they hold what they held before.

    No hook, attribute or flag of theirs changes. A packed weight whose ``scale`` is lent is dequantized with
    it, by the very code that it is used with, so that derivatives by scales need nothing else.

    >>> import torch
    >>> layer, weight = nn.Linear(1, 1, bias=False), torch.ones(1, 1, requires_grad=True)
    >>> with lent([Loan(module=layer, name="weight", tensor=2 * weight)]):
    ...     torch.autograd.grad(layer(torch.full((1,), 3.0)), weight)
    (tensor([[6.]]),)
    >>> type(layer.weight).__name__
    'Parameter'
    """
    places = [(loan.place(), loan) for loan in loans]
    before = [(place, loan.name, place[loan.name]) for place, loan in places]
    try:
        for place, loan in places:
            place[loan.name] = loan.tensor
        yield
    finally:
        for place, name, tensor in reversed(before):
            place[name] = tensor
