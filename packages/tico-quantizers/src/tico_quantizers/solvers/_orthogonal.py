"""Orthogonal matrices that spread every channel over all others, the same bits for a seed on any machine."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from tico_observers.products import product, total
from tico_quantizers.solvers._hadamard import hadamard_matrix, hadamard_order

_PANEL = 64


def orthogonal_matrix(
    size: int,
    *,
    matrix: Literal["hadamard", "random"] = "hadamard",
    seed: int = 0,
    keeps_mean: bool = False,
) -> Tensor:
    """Return an orthogonal matrix R (size, size) in float64, to be multiplied from the right: x R.

    ``"hadamard"`` is a Hadamard matrix with random signs of rows and columns, so that no entry is larger than
    another (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456, section 3). Where there is none of that size, it
    is the Kronecker product of a random orthogonal matrix with the largest Hadamard matrix that fits.
    ``"random"`` is an orthogonal matrix drawn uniformly. With `keeps_mean`, R leaves vectors of equal numbers
    as they are, so that x R has the mean of x and LayerNorm commutes with R; that moves entries of R by about
    1 / size.

    The generator is seeded with `seed`, and no other one is read.

    >>> rotation = orthogonal_matrix(12, seed=1)
    >>> bool(((rotation @ rotation.T - torch.eye(12)).abs() < 1e-14).all())
    True
    >>> ones = torch.ones(1, 12, dtype=torch.float64)
    >>> bool(((ones @ orthogonal_matrix(12, keeps_mean=True) - ones).abs() < 1e-14).all())
    True
    """
    generator = torch.Generator().manual_seed(seed)
    rotation = _spread(size, generator) if matrix == "hadamard" else _uniform(size, generator)
    return _keeping_mean(rotation) if keeps_mean else rotation


def orthogonal_factors(
    size: int, *, matrix: Literal["hadamard", "random"] = "hadamard", seed: int = 0
) -> tuple[Tensor, Tensor]:
    """Return two orthogonal matrices (a, a) and (b, b) in float64 with a * b = `size`.

    Their Kronecker product is an orthogonal matrix that takes a + b products a channel, and not `size`. For
    ``"hadamard"`` all its entries have one magnitude where `orthogonal_matrix` has such a matrix of the size.
    The second factor is a power of two; of all splits that allow the largest Hadamard matrix, it is the one
    with the smallest a + b.

    >>> [len(factor) for factor in orthogonal_factors(1536)]
    [48, 32]
    >>> outer, inner = orthogonal_factors(24)
    >>> bool((torch.kron(outer, inner).abs() - 24**-0.5).abs().max() < 1e-15)
    True
    """
    powers = [2**power for power in range(size.bit_length()) if not size % 2**power]
    inner = min(powers, key=lambda each: (-hadamard_order(size // each) * each, size // each + each))
    outer, last = (
        orthogonal_matrix(each, matrix=matrix, seed=seed + place)
        for place, each in enumerate((size // inner, inner))
    )
    return outer, last


def _spread(size: int, generator: torch.Generator) -> Tensor:
    order = hadamard_order(size)
    before, after = torch.randint(0, 2, (2, size), generator=generator).to(torch.float64) * 2 - 1
    hadamard = hadamard_matrix(order) / math.sqrt(order)
    whole = hadamard if order == size else torch.kron(_uniform(size // order, generator), hadamard)
    signed: Tensor = before[:, None] * whole * after
    return signed


def _uniform(size: int, generator: torch.Generator) -> Tensor:
    """Return an orthogonal matrix drawn from the uniform distribution: the factor Q of normal numbers.

    By Gram and Schmidt in panels, each of them twice, which is as orthogonal as rounding allows (Giraud et
    al. 2005). The bits that LAPACK gives depend on the number of threads.
    """
    result = torch.randn(size, size, generator=generator, dtype=torch.float64)
    for start in range(0, size, _PANEL):
        done, panel = result[:, :start], result[:, start : start + _PANEL]
        for _ in range(2):
            if start:
                panel -= product(done, product(done.T, panel))
            _orthogonalize(panel)
    return result


def _orthogonalize(panel: Tensor) -> None:
    """Make the columns of `panel` orthogonal to each other, each of length 1, in place."""
    for column in range(panel.shape[1]):
        before, own = panel[:, :column], panel[:, column]
        own -= (before * (before * own[:, None]).sum(0)).sum(1)
        own /= own.norm()


def _keeping_mean(rotation: Tensor) -> Tensor:
    """Return `rotation` with a reflection behind it that takes what it makes of ones back to ones."""
    moved = rotation.sum(0)
    normal = moved - 1.0
    squared = float(total(normal.square()))
    if squared == 0.0:
        return rotation
    return rotation - (rotation * normal).sum(1)[:, None] * (normal * (2.0 / squared))
