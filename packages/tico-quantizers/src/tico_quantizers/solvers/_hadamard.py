"""Hadamard matrices: orthogonal up to a factor, and all of their entries 1 or -1."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from tico_config import ConfigError, Found, Problem


def hadamard_matrix(order: int) -> Tensor:
    """Return a Hadamard matrix (order, order) in float64: entries 1 and -1, and H Hᵀ = order * I.

    Sylvester 1867 for powers of two, Paley 1933 for q + 1 (q a prime that leaves 3 when divided by 4) and for
    2 (q + 1) (q a prime that leaves 1), and Kronecker products of these.

    Raises:
        ConfigError: these constructions give none of that order.

    >>> hadamard_matrix(2).tolist()
    [[1.0, 1.0], [1.0, -1.0]]
    >>> bool((hadamard_matrix(12) @ hadamard_matrix(12).T == 12 * torch.eye(12)).all())
    True
    """
    blocks = _blocks(order) if order > 0 else None
    if blocks is None:
        found, expected = Found(str(order)), "the order of a product of Sylvester and Paley matrices"
        sentence = f"Sylvester's and Paley's constructions give no Hadamard matrix of the order {order}"
        raise ConfigError(Problem(field="order", value=found, expected=expected, sentence=sentence))
    result = torch.ones(1, 1, dtype=torch.float64)
    for block in blocks:
        result = torch.kron(result, _block(block))
    return result


def hadamard_order(size: int) -> int:
    """Return the largest order of a Hadamard matrix that divides `size`; 1 always does.

    >>> hadamard_order(576), hadamard_order(18), hadamard_order(9)
    (576, 2, 1)
    """
    return max(order for order in range(1, size + 1) if not size % order and _blocks(order) is not None)


@cache
def _blocks(order: int) -> tuple[int, ...] | None:
    """Return the orders of blocks whose Kronecker product has `order`, or None where there are none.

    At most one of them is Paley's if that is possible, and then as small as it can be.
    """
    if not order & (order - 1):
        return (2,) * (order.bit_length() - 1)
    divisors = [each for each in range(4, order + 1) if not order % each and _is_paley(each)]
    found = [(each, *rest) for each in divisors if (rest := _blocks(order // each)) is not None]
    return min(found, key=lambda each: (sum(block > 2 for block in each), each[0]), default=None)


def _is_paley(order: int) -> bool:
    return _paley_prime(order) is not None


def _paley_prime(order: int) -> int | None:
    """Return the prime of which Paley's first or second construction makes a matrix of `order`."""
    if order % 4 == 0 and _is_prime(order - 1):
        return order - 1
    half = order // 2 - 1
    return half if order % 4 == 0 and half % 4 == 1 and _is_prime(half) else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, int(number**0.5) + 1))


def _block(order: int) -> Tensor:
    if order == 2:
        return torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    prime = _paley_prime(order)
    if prime is None:
        raise ValueError(order)
    return _first_paley(prime) if prime == order - 1 else _second_paley(prime)


def _jacobsthal(prime: int) -> Tensor:
    """Return Q with Q[i, j] the Legendre symbol of i - j: 0 for 0, 1 for squares, -1 for all others."""
    squares = {number * number % prime for number in range(1, prime)}
    symbol = [0.0] + [1.0 if number in squares else -1.0 for number in range(1, prime)]
    places = torch.arange(prime)
    return torch.tensor(symbol, dtype=torch.float64)[(places[:, None] - places) % prime]


def _bordered(inner: Tensor, below: float) -> Tensor:
    """Return `inner` with a row of ones above it, a column of `below` beside it, and 0 in the corner."""
    size = len(inner) + 1
    result = inner.new_zeros(size, size)
    result[0, 1:], result[1:, 0], result[1:, 1:] = 1.0, below, inner
    return result


def _first_paley(prime: int) -> Tensor:
    return torch.eye(prime + 1, dtype=torch.float64) + _bordered(_jacobsthal(prime), -1.0)


def _second_paley(prime: int) -> Tensor:
    conference, identity = _bordered(_jacobsthal(prime), 1.0), torch.eye(prime + 1, dtype=torch.float64)
    along = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64)
    across = torch.tensor([[1.0, -1.0], [-1.0, -1.0]], dtype=torch.float64)
    return torch.kron(conference, along) + torch.kron(identity, across)
