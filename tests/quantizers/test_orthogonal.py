"""Orthogonal matrices: Hadamard where the size allows, the same bits whatever the machine does besides."""

from __future__ import annotations

import math
from typing import Literal

import pytest
import torch
from torch import Tensor

from tico_config import ConfigError
from tico_quantizers.solvers import hadamard_matrix, orthogonal_factors, orthogonal_matrix

EPS = torch.finfo(torch.float64).eps
SYLVESTER = [1, 2, 4, 64]
FIRST_PALEY = [12, 20, 24, 44]
SECOND_PALEY = [28, 36, 76]
PRODUCTS = [40, 144, 576]

Kind = Literal["hadamard", "random"]


def departure(rotation: Tensor) -> float:
    """Return how far R Rᵀ is from the identity, in its largest entry."""
    return float((rotation @ rotation.T - torch.eye(len(rotation), dtype=torch.float64)).abs().max())


def tolerance(size: int) -> float:
    """Return what rounding may do to an entry of R Rᵀ.

    It is a product over `size` terms, of columns that a few such products have rounded before.
    """
    return 8 * math.sqrt(size) * EPS


@pytest.mark.parametrize("order", [*SYLVESTER, *FIRST_PALEY, *SECOND_PALEY, *PRODUCTS])
def test_hadamard_matrices_are_orthogonal_and_of_ones(order: int) -> None:
    """All entries are 1 or -1, and H Hᵀ is the order times the identity, exactly: they are integers."""
    matrix = hadamard_matrix(order)
    assert matrix.dtype == torch.float64
    assert set(matrix.flatten().tolist()) <= {1.0, -1.0}
    assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


@pytest.mark.parametrize("order", [0, -4, 3, 6, 92])
def test_orders_without_a_construction_are_refused(order: int) -> None:
    """The error names the order."""
    with pytest.raises(ConfigError, match=str(order)):
        hadamard_matrix(order)


@pytest.mark.parametrize("keeps_mean", [False, True])
@pytest.mark.parametrize("kind", ["hadamard", "random"])
@pytest.mark.parametrize("size", [1, 2, 7, 12, 18, 130, 144])
def test_every_size_has_an_orthogonal_matrix(size: int, kind: Kind, keeps_mean: bool) -> None:
    """R Rᵀ = I up to rounding, for sizes with and without a Hadamard matrix."""
    rotation = orthogonal_matrix(size, matrix=kind, seed=3, keeps_mean=keeps_mean)
    assert departure(rotation) <= tolerance(size)
    if keeps_mean:
        ones = torch.ones(1, size, dtype=torch.float64)
        assert float((ones @ rotation - ones).abs().max()) <= tolerance(size)


@pytest.mark.parametrize("size", [64, 144, 576])
def test_hadamard_rotations_spread_a_channel_evenly(size: int) -> None:
    """No entry is larger than another, so that what one channel has is in all of them afterwards."""
    assert set(orthogonal_matrix(size, seed=1).abs().flatten().tolist()) == {1 / math.sqrt(size)}


def test_keeping_the_mean_hardly_moves_an_entry() -> None:
    """The largest entry stays within 25 / size of what it was."""
    size = 576
    rotation = orthogonal_matrix(size, seed=1, keeps_mean=True)
    # An entry moves by (r - 1)(1 - c) / size with r and c sums of a row and a column, normal numbers.
    assert float(rotation.abs().max()) <= 1 / math.sqrt(size) + 25 / size


def test_seeds_give_other_matrices() -> None:
    """Two seeds differ; one seed gives the same bits again."""
    for kind in ("hadamard", "random"):
        first, again, other = (orthogonal_matrix(12, matrix=kind, seed=seed) for seed in (0, 0, 1))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


@pytest.mark.parametrize("size", [18, 130])
@pytest.mark.parametrize("kind", ["hadamard", "random"])
def test_threads_and_random_numbers_make_no_difference(size: int, kind: Kind) -> None:
    """The bits are the same on one thread and on three, and the global generator is left alone."""
    before, state = torch.get_num_threads(), torch.random.get_rng_state()
    try:
        found = []
        for threads in (1, 3):
            torch.set_num_threads(threads)
            found.append(orthogonal_matrix(size, matrix=kind, seed=5, keeps_mean=True))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("size", [1, 7, 18, 24, 36, 64, 576, 640])
def test_factors_make_an_orthogonal_matrix_of_the_size(size: int) -> None:
    """Their product is orthogonal, and all its entries have one magnitude where a single matrix's have."""
    outer, inner = orthogonal_factors(size, seed=2)
    whole = torch.kron(outer, inner)
    assert whole.shape == (size, size)
    assert departure(whole) <= tolerance(size)
    spreads = [each.abs().max() / each.abs().min() for each in (whole, orthogonal_matrix(size))]
    # Ratios of numbers that were rounded a few times each.
    assert bool(spreads[1] > 1 + 1e-9) or bool(spreads[0] <= 1 + 1e-12)


def test_other_seeds_give_other_factors() -> None:
    """And the same seed the same bits."""
    first, again, other = (torch.kron(*orthogonal_factors(24, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
